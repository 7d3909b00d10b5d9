"""Find the model and the data that come with the project."""

from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[2]
EMBEDDED_CHECKPOINT = "checkpoints/llava-signs"  # relative to playground/


def playground() -> Path:
    """Find the folder of data, checkpoints and results: `playground` here, else that of this source tree."""
    here = Path("playground")
    return here if here.is_dir() else SOURCE_ROOT / "playground"
