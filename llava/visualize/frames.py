"""Read images from files, folders and videos, each with a title."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from llava.mm_utils import find_pictures, load_image

VIDEO_TYPES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")


def frames_of(path: Path, limit: int | None) -> Iterator[tuple[str, Image.Image]]:
    """Yield title and image of each frame: one of an image file, at most `limit` of a folder or a video, evenly spaced.

    Raises:
        ValueError: no such file, a folder without images, or a file that is damaged or of no known format.
        ImportError: a video, and PyAV is not installed.
    """
    if path.suffix.lower() in VIDEO_TYPES and path.is_file():
        yield from video_frames(path, limit)
        return
    files = find_pictures(path) if path.is_dir() else [path]
    for i in evenly(len(files), limit):
        yield files[i].stem, load_image(files[i])


def video_frames(path: Path, limit: int | None) -> Iterator[tuple[str, Image.Image]]:
    """Yield at most `limit` frames of a video, evenly spaced."""
    try:
        import av
    except ImportError:
        raise ImportError(
            f"{path}: to read a video install PyAV (pip install -e '.[video]', or pip install av), or take its frames "
            f"out with another program and name their folder."
        ) from None
    try:
        with av.open(str(path)) as container:
            packets = sum(packet.size > 0 for packet in container.demux(video=0))  # frames, without decoding them
        wanted = set(evenly(packets, limit))
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    yield f"frame {number + 1}", frame.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: no video that can be decoded ({error}).") from None


def evenly(count: int, limit: int | None) -> list[int]:
    """Choose at most `limit` of the numbers below `count`: cut into that many equal parts, the middle of each."""
    take = min(count, limit or count)
    return [(2 * i + 1) * count // (2 * take) for i in range(take)]
