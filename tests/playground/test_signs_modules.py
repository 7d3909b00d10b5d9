"""The programs that made the embedded model still fit the packages that they use."""

from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "playground/signs"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_program_of_the_playground_can_be_imported(name):
    import_module(f"playground.signs.{name}")
