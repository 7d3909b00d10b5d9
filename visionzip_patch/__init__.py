"""VisionZip (arXiv 2412.04467): fewer, better visual tokens for vision-language models. Usable without LLaVA."""

from visionzip_patch.api import unzip, visionzip, zipped
from visionzip_patch.config import VisionZipConfig
from visionzip_patch.selection import Selection, compress, select

__all__ = ["Selection", "VisionZipConfig", "compress", "select", "unzip", "visionzip", "zipped"]
