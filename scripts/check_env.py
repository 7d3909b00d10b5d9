"""Tell whether this Python has what the project needs: `python scripts/check_env.py [EXTRA ...]`.

Reads the requirements from pyproject.toml and compares installed versions; imports none of the packages, so it takes a
tenth of a second. Prints what is wrong on one line. Exit status: 0 usable, 3 something is missing, 4 only versions
outside the tested ranges.
"""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
MISSING, OUTSIDE = 3, 4
LAZY = {"peft"}  # imported only to load or train LoRA adapters, and that code says so itself when it is absent


def required(extras: list[str]) -> list[str]:
    """The requirement lines of the project and of these extras."""
    optional = read_lists("project.optional-dependencies")
    if unknown := sorted(set(extras) - set(optional)):
        raise ValueError(f"No extra is named {', '.join(unknown)}; pyproject.toml has {', '.join(sorted(optional))}.")
    return read_lists("project")["dependencies"] + [line for extra in extras for line in optional[extra]]


def read_lists(table: str) -> dict[str, list[str]]:
    """The lists of strings in a table of pyproject.toml. Python reads them as TOML does; Python 3.10 has no tomllib."""
    text = PYPROJECT.read_text(encoding="utf-8")
    body = re.search(rf"^\[{re.escape(table)}\]$(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)[1]
    lists = re.findall(r'^([\w-]+) = (\[(?:[^]"#]|"[^"]*"|#.*)*\])', body, re.MULTILINE)
    return {name: ast.literal_eval(value) for name, value in lists}


def compare(lines: list[str]) -> tuple[list[str], list[str]]:
    """What is missing, and what is there in a version outside its range."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:  # transformers and accelerate both need it
        return ["packaging is missing"], []
    missing, outside = [], []
    for requirement in map(Requirement, lines):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if requirement.name not in LAZY:
                missing.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            outside.append(f"{requirement.name} {version} is outside {requirement.specifier}")
    return missing, outside


def main() -> int:
    missing, outside = compare(required(sys.argv[1:]))
    if missing or outside:
        print(", ".join(missing + outside))
    return MISSING if missing else OUTSIDE if outside else 0


if __name__ == "__main__":
    sys.exit(main())
