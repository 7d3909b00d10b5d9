"""VisionZip (arXiv 2412.04467): fewer, better visual tokens for vision-language models. Usable without LLaVA."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visionzip_patch.api import unzip, visionzip, zipped
    from visionzip_patch.config import VisionZipConfig
    from visionzip_patch.selection import Selection, compress, select

__all__ = ["Selection", "VisionZipConfig", "compress", "select", "unzip", "visionzip", "zipped"]

# Imported when they are asked for: a command that only offers the names of `selectors` does not wait for torch.
EXPORTS = {
    "Selection": "selection",
    "VisionZipConfig": "config",
    "compress": "selection",
    "select": "selection",
    "unzip": "api",
    "visionzip": "api",
    "zipped": "api",
}


def __getattr__(name: str):
    if name in EXPORTS:
        return getattr(import_module(f"visionzip_patch.{EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
