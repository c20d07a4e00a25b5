"""Puts tables that scripts wrote into a page, so that no cell is filled in by hand.

    python experiments/fill_tables.py docs/RESULTS.md

What stands between `<!-- table: FILE -->` and `<!-- end of table -->` in the page is replaced by
FILE, a Markdown file that a script of this folder wrote. Where it is not there, the page keeps what
it has, and a line says so.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

import figures

from hume_jax.errors import UserError
from hume_jax.files import atomic_write

_PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<file>[^\n]+?) -->\n)(?P<old>.*?)(?P<end><!-- end of table -->)",
    re.DOTALL,
)


def fill(page: str) -> str:
    """The page with its tables.

    Raises:
      UserError: a beginning without an end.
    """
    if page.count("<!-- table: ") != page.count("<!-- end of table -->"):
        raise UserError("each <!-- table: FILE --> needs an <!-- end of table -->")

    def replaced(match: re.Match[str]) -> str:
        path = pathlib.Path(match["file"])
        if not path.exists():
            print(f"{path} is not there: its table stays as it is", file=sys.stderr)
            return match[0]
        return f"{match['begin']}\n{path.read_text(encoding='utf-8').strip()}\n\n{match['end']}"

    return _PLACE.sub(replaced, page)


def main(arguments: Sequence[str]) -> None:
    """Fills pages in place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="+", type=pathlib.Path)
    for page in parser.parse_args(arguments).pages:
        if not page.is_file():
            raise UserError(f"{page}: no such file")
        text = fill(page.read_text(encoding="utf-8"))
        with atomic_write(page) as file:
            file.write(text.encode())


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
