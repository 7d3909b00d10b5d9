"""Where the model and the data lie that come with the project."""

from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[2]
EMBEDDED_CHECKPOINT = "checkpoints/llava-signs"  # relative to playground/


def playground() -> Path:
    """The folder of data, checkpoints and results: the current directory's if it has one, else this source tree's."""
    here = Path("playground")
    return here if here.is_dir() else SOURCE_ROOT / "playground"
