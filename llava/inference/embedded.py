"""Find the model and the data that come with the project."""

from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[2]

# Relative to playground/:
EMBEDDED_CHECKPOINT = "checkpoints/llava-signs"
EMBEDDED_DATA = "data/eval/signs"  # pictures, and questions about them
EMBEDDED_IMAGES = f"{EMBEDDED_DATA}/train_images"
EMBEDDED_PICTURE = f"{EMBEDDED_IMAGES}/sign000000000.png"


def playground() -> Path:
    """Find the folder of data, checkpoints and results: `playground` here, else that of this source tree."""
    here = Path("playground")
    return here if here.is_dir() else SOURCE_ROOT / "playground"
