r"""Draws the page of a finished run anew, or sets two runs side by side.

    python -m hume_jax.report --run=WORKDIR
    python -m hume_jax.report --run=WORKDIR --train_samples=texts.txt
    python -m hume_jax.report --compare WORKDIR_A WORKDIR_B --out=compare.html

The page is drawn from the run's folder; its arrays are not needed. Texts or images of the rows are
read where the run's config, or a flag, says that they are.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from hume_jax import command_line
from hume_jax.errors import UserError
from hume_jax.files import atomic_write

if TYPE_CHECKING:
    from hume_jax.report.page import folder

# Other commands have flags of these names too; a process runs one command.
_RUN = flags.DEFINE_string(
    "run", "", "Folder of a finished run; its report.html is drawn anew.", allow_override=True
)
_SAMPLES = {
    split: flags.DEFINE_string(
        f"{split}_samples",
        "",
        f"What the {split} rows are, if the run's config does not say: a .txt of a line a row, a "
        ".json list of texts, or images (a folder, .tar, .zip) in the order of the rows.",
    )
    for split in ("train", "test")
}
_COMPARE = flags.DEFINE_bool("compare", False, "Set the two runs side by side that follow.")
_OUT = flags.DEFINE_string(
    "out", "compare.html", "Where --compare writes its page.", allow_override=True
)


def main(argv: list[str]) -> None:
    """Draws what the flags say."""
    places = argv[1:]
    if _COMPARE.value:
        if len(places) != 2 or _RUN.value:
            raise UserError("--compare takes the folders of two runs: --compare RUN_A RUN_B")
        _compare(*places)
        return
    if places or not _RUN.value:
        given = f"unexpected argument {places[0]!r}" if places else "no run"
        raise UserError(f"{given}: give --run=WORKDIR, or --compare RUN_A RUN_B")
    _draw(_RUN.value)


def _draw(place: str) -> None:
    from hume_jax.report.page import folder, writing

    opened = folder.open_run(place)
    given = {split: flag.value for split, flag in _SAMPLES.items() if flag.value}
    for split, path in given.items():
        _check_samples(opened.run, split, path)
    page = writing.redraw(opened, given)
    with command_line.printing():
        print(page)


def _check_samples(run: "folder.Run", split: str, path: str) -> None:
    """A flag that is wrong is an error, where a config whose files are gone is a note."""
    from hume_jax.representations import samples

    if split not in run.splits:
        raise UserError(f"--{split}_samples={path}: the run has no {split} rows")
    samples.check(f"--{split}_samples", path, int(run.arrays["files"][run.splits.index(split)]))


def _compare(first: str, second: str) -> None:
    from hume_jax.report.page import compare

    page = compare.page(compare.open_pair(first, second))
    out = Path(_OUT.value).expanduser()
    try:
        with atomic_write(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    with command_line.printing():
        print(out)


def run() -> None:
    """`python -m hume_jax.report`."""
    command_line.run_plain(main, arguments=True)


if __name__ == "__main__":
    run()
