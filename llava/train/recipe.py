"""Read recipes: YAML files of a training run's options, as if they had been typed in front of the command line."""

import argparse
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from llava.inference.embedded import SOURCE_ROOT
from llava.utils.files import read_bytes


def read_recipe(path: Path, parser: argparse.ArgumentParser, known: Mapping[str, Any]) -> dict:
    """Read the options in a YAML file, by name.

    Args:
        path: the file.
        parser: takes the same options from a command line.
        known: the type of every option, by name.

    Raises:
        ValueError: not YAML, an unknown key, or a value of another type than the option's; file and key are named.
    """
    try:
        values = yaml.safe_load(read_bytes(path)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of 'name: value', found {type(values).__name__}.")
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}.{similar(str(key), known)} --help-all lists them all.")
        union = get_args(known[key]) if get_origin(known[key]) in (Union, UnionType) else (known[key],)
        expected = {get_origin(kind) or kind for kind in union}
        if isinstance(value, bool | list | dict) and not {type(value), Literal} & expected:
            names = " or ".join(sorted(getattr(kind, "__name__", str(kind)) for kind in expected - {type(None)}))
            quotes = " A text that YAML takes for something else, as it does no, goes in quotes." * (str in expected)
            raise ValueError(f"{path}: {key}: {value!r}; expected {names}.{quotes}")
    try:
        parser.parse_args(to_options(values, known))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return values


def to_options(values: dict, known: Mapping[str, Any]) -> list[str]:
    """Turn a recipe into words of a command line; a key without a value is left out.

    YAML reads 2e-5 as a text, for want of a point: on a command line it is the same as 2.0e-5.
    """
    words = []
    for name, value in values.items():
        if isinstance(value, list) and get_origin(known[name]) is list:
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, list | dict) else value}")
    return words


def find_file(name: str) -> Path:
    """Find a file by its name in the current directory or, failing that, in the repository.

    Raises:
        ValueError: it is in neither; the message lists the files of its kind that the repository has.
    """
    for path in (Path(name), SOURCE_ROOT / name):
        if path.is_file():
            return path
    shipped = sorted((SOURCE_ROOT / "configs").rglob(f"*{Path(name).suffix}"))
    names = ", ".join(str(path.relative_to(SOURCE_ROOT)) for path in shipped if path.is_file())
    raise ValueError(f"{name}: no such file, here or in {SOURCE_ROOT}, which has {names}.")


def similar(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Ask whether a similar known name was meant; returns nothing if there is none."""
    close = get_close_matches(name, list(known))
    return f" Did you mean {' or '.join(prefix + known for known in close)}?" if close else ""
