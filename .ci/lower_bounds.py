"""Prints the oldest version of each package that setup.cfg allows, as constraints for pip.

python .ci/lower_bounds.py > constraints.txt
pip install --constraint constraints.txt --editable ".[arrays,baselines,images,test]"
"""

import configparser
import pathlib
import re
import sys

# What is installed for the tests; of the tools of `test` themselves, any version will do.
EXTRAS = ("arrays", "baselines", "images", "gcs")


def lower_bounds(text: str) -> dict[str, str]:
    """The first version that each requirement of a setup.cfg allows.

    Args:
      text: of the file.

    Returns:
      A version by the name of each package, without its extras.
    """
    parser = configparser.ConfigParser()
    parser.read_string(text)
    lists = [parser["options"]["install_requires"]]
    lists += [parser["options.extras_require"][extra] for extra in EXTRAS]
    bounds: dict[str, str] = {}
    for line in "\n".join(lists).splitlines():
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        match = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?(>=|==)([\w.]+)", requirement)
        if not match:
            raise ValueError(f"{requirement!r} is not of the form NAME>=VERSION or NAME==VERSION")
        name, _, _, version = match.groups()
        if bounds.setdefault(name, version) != version:
            raise ValueError(f"setup.cfg has two bounds of {name}: {bounds[name]} and {version}")
    return bounds


if __name__ == "__main__":
    setup = pathlib.Path(__file__).resolve().parents[1] / "setup.cfg"
    for name, version in lower_bounds(setup.read_text(encoding="utf-8")).items():
        sys.stdout.write(f"{name}=={version}\n")
