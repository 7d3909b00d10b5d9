"""Images from files to what a model takes, prepared ahead of it by worker processes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llava.mm_utils import load_image, process_images

AHEAD = 4  # images that each worker may have ready
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


def read_pictures(
    names: Sequence[str], folder: str | Path, image_processor, config, num_workers: int | None = None
) -> Iterator[Picture | str]:
    """Each image in turn, or why it cannot be used, while workers prepare the next; few are in memory at a time.

    Args:
        names: of image files, below `folder`.
        image_processor, config: of the model.
        num_workers: processes that prepare images, 0 for none but this; by default one per CPU core, at most 8, and
            fewer where there is little to do.
    """
    if num_workers is None:
        num_workers = min(8, os.cpu_count() or 1, len(names) // WORTH_A_WORKER)
    loader = DataLoader(
        PictureFiles(names, Path(folder), image_processor, config),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=AHEAD if num_workers else None,
        collate_fn=unchanged,
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
