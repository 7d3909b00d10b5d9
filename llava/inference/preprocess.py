"""Images from files to what a model takes, prepared ahead of it by worker processes."""

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
    """Decode and prepare one image. Raises ValueError, naming the file, where it is no usable image."""
    image = load_image(str(path))
    try:
        return Picture(process_images([image], image_processor, config)[0], image.size)
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{path}: {error or 'preparing it takes more memory than there is'}") from error


def free_workers(device: torch.device, images: int) -> int:
    """How many processes are worth it for so many images: one per core that a model on `device` leaves free, at most 8.

    Processes of one launch share the cores.
    """
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cpu":
        cores -= torch.get_num_threads()
    return max(0, min(8, cores, images // WORTH_A_WORKER))


def read_pictures(
    names: Sequence[str], folder: str | Path, image_processor, config, num_workers: int = 0, batch_size: int = 16
) -> Iterator[Picture | str]:
    """Each image in turn, or why it cannot be used, while workers prepare the next: those of one batch, and no more.

    Args:
        names: of image files, below `folder`.
        image_processor, config: of the model.
        num_workers: processes that prepare images, 0 for none but this.
        batch_size: images that are used together.
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
    """What a worker does. Pixels leave it as an array: tensors would go through /dev/shm, small in a container."""

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
    return item


def begin_worker(number: int) -> None:
    """Let the main process decide when a worker ends; nothing else may keep it or end it."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to all, and a worker that ends by itself waits for its pipe
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # else it outlives a main process that is killed


@contextmanager
def lost_workers() -> Iterator[None]:
    """Say what it means when a worker was killed, which torch reports wherever the main process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            "A process that prepares images was killed, usually for lack of memory. What was done is kept: run the "
            "same again with fewer --num-workers; 0 prepares images in the main process."
        ) from error
