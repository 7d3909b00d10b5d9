"""Prepare images for a model, ahead of it, in worker processes."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llava.mm_utils import load_image, process_images

PR_SET_PDEATHSIG = 1  # of Linux's prctl
WORTH_A_WORKER = 16  # images: for fewer, starting a process costs more than it saves


class Picture(NamedTuple):
    """An image as the model takes it."""

    pixels: Tensor  # (3, S, S), or (crops, 3, S, S) of an anyres model
    size: tuple[int, int]  # width and height of the original, in pixels


def read_picture(path: str | Path, image_processor, config) -> Picture:
    """Decode and prepare one image.

    Args:
        path: of the file.
        image_processor: of the model.
        config: of the model: how the image is cut or padded.

    Raises:
        ValueError: the file is no usable image; it is named.
    """
    image = load_image(str(path))
    try:
        return Picture(process_images([image], image_processor, config)[0], image.size)
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{path}: {error or 'preparing it takes more memory than there is'}") from error


def free_workers(device: torch.device, images: int) -> int:
    """Count the processes that are worth starting to prepare images.

    That is one per core that a model on `device` leaves free, at most 8; processes of one launch share the cores.
    """
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cpu":
        cores -= torch.get_num_threads()
    return max(0, min(8, cores, images // WORTH_A_WORKER))


def read_pictures(
    names: Sequence[str], folder: str | Path, image_processor, config, num_workers: int = 0, batch_size: int = 16
) -> Iterator[Picture | str]:
    """Read images in turn while workers prepare the next ones.

    Args:
        names: of image files, below `folder`.
        folder: what the names are relative to.
        image_processor: of the model.
        config: of the model.
        num_workers: processes that prepare images, 0 for none but this.
        batch_size: images that are used together; no more than these are prepared ahead.

    Yields:
        The image, or why it cannot be used.
    """
    num_workers = min(num_workers, len(names))
    loader = DataLoader(
        PictureFiles(names, Path(folder), image_processor, config),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=-(-batch_size // num_workers) if num_workers else None,
        collate_fn=unchanged,
        worker_init_fn=begin_worker,
    )
    for found in loader:
        yield found if isinstance(found, str) else Picture(torch.from_numpy(found[0]), found[1])


class PictureFiles(Dataset):
    """Prepare images in a worker. Pixels leave it as arrays: tensors would use /dev/shm, small in a container."""

    def __init__(self, names: Sequence[str], folder: Path, image_processor, config):
        self.names, self.folder, self.image_processor, self.config = names, folder, image_processor, config

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int):
        try:
            picture = read_picture(self.folder / self.names[index], self.image_processor, self.config)
        except ValueError as error:
            return str(error)
        return picture.pixels.numpy(), picture.size


def unchanged(item):
    """Return what came: a batch is one item."""
    return item


def begin_worker(number: int) -> None:
    """Let the main process decide when a worker ends; nothing else may keep it or end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; a worker that ends by it waits for its pipe
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # else it outlives a main process that is killed


@contextmanager
def lost_workers() -> Iterator[None]:
    """Explain the error that torch raises when a worker was killed, wherever the main process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            "A process that prepares images was killed, usually for lack of memory. What was done is kept: run the "
            "same again with fewer --num-workers; 0 prepares images in the main process."
        ) from error
