"""Build a feature cache: run the images that it lacks through the vision tower, and write them as shards."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from tqdm import tqdm

from llava.encode.store import FeatureCache, Record, cache_key, open_cache
from llava.inference.preprocess import Picture, free_workers, lost_workers, read_pictures
from llava.model.anyres import VisionFeatures
from llava.utils.files import make_folder, write_json
from llava.utils.processes import Shard, current_shard

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20  # a shard is built in memory: it ends here, however few images it has
OLD_DRAFT = 3600  # seconds; no process is that long at one shard's file


class ImageFile(NamedTuple):
    """An image to be cached, and the state of its file."""

    image: str  # relative to the image folder
    stamp: tuple[int, int] | None  # size in bytes and mtime in ns; None: there is no such file


@torch.inference_mode()
def build_cache(
    folder: str | Path,
    names: Sequence[str],
    image_folder: str | Path | None,
    model,
    image_processor,
    *,
    batch_size: int = 32,
    num_workers: int | None = None,
    images_per_shard: int = 1024,
    skip_bad: bool = False,
    progress: str | None = "images",
) -> dict[str, str]:
    """Compute the features of all images that `folder` lacks.

    Of several processes (`llava.utils.processes`) each does its own part; wait for all of them before `open_cache`.
    Run again after a crash: finished shards are kept.

    Args:
        folder: where the cache is or will be.
        names: of images; one named twice is computed once.
        image_folder: what the names are relative to. None: they are paths.
        model, image_processor: as loaded for training, VisionZip attached.
        batch_size: images per call of the tower.
        num_workers: processes that prepare images; by default `llava.inference.preprocess.free_workers`.
        images_per_shard: how many at most; large images end a shard earlier.
        skip_bad: leave out images that cannot be used, instead of raising an error.
        progress: title of the progress bar on stderr; None for no bar.

    Returns:
        By name, the images of this process's part that were left out, and why.

    Raises:
        ValueError: stale or damaged shards (`open_cache`), an image file that changed since, an image that cannot be
            used, a full disk. The image or shard is named. An image that is cached needs no file any more.
    """
    shard, key, folder = current_shard(), cache_key(model, image_processor), make_folder(folder)
    cache = open_cache(folder, key)
    if shard.index == 0:
        write_json(folder / "key.json", key)
        remove_old_drafts(folder)
    image_folder = Path(image_folder or "")
    missing = find_missing(cache, names, image_folder, shard)
    if not missing:
        return {}

    batch_size = min(batch_size, images_per_shard)
    workers = free_workers(model.device, len(missing)) if num_workers is None else num_workers
    wanted = [file.image for file in missing]
    pictures = read_pictures(wanted, image_folder, image_processor, model.config, workers, batch_size)
    writer, bad = ShardWriter(folder, key, images_per_shard - batch_size), {}
    hidden = progress is None or shard.index > 0
    with (
        lost_workers(),
        closing(pictures),
        tqdm(total=len(missing), desc=progress, unit="image", disable=hidden, dynamic_ncols=True) as bar,
    ):
        for start in range(0, len(missing), batch_size):
            usable, refused = take_batch(missing[start : start + batch_size], pictures, skip_bad)
            bad |= refused
            images = encode(model.get_vision_tower(), usable)
            if start == 0 and shard.index == 0 and images:
                log_expected_size(folder, images, len(missing) * shard.count)
            writer.add(images)
            bar.update(len(usable) + len(refused))
        writer.flush()
    if bad:
        logger.warning("%d images are left out of the feature cache; the first: %s", len(bad), next(iter(bad.values())))
    return bad


def find_missing(cache: FeatureCache, names: Sequence[str], image_folder: Path, shard: Shard) -> list[ImageFile]:
    """List the images that the cache lacks, of the part that process `shard` computes.

    Raises:
        ValueError: the file of a cached image has changed.
    """
    files = [ImageFile(name, stamp_of(image_folder / name)) for name in dict.fromkeys(names)]
    refuse_changed(files, cache)
    # Split before looking at what is missing: other processes may already be adding to it.
    return [file for file in files[shard.index :: shard.count] if file.image not in cache]


def take_batch(
    batch: Sequence[ImageFile], pictures: Iterator[Picture | str], skip_bad: bool
) -> tuple[dict[ImageFile, Picture], dict[str, str]]:
    """Take the pictures of a batch: those that can be used, and by name the reasons why others cannot.

    Raises:
        ValueError: one cannot be used, and it is not to be skipped.
    """
    usable, refused = {}, {}
    for file, picture in zip(batch, pictures, strict=False):  # takes as many as the batch has
        if isinstance(picture, Picture):
            usable[file] = picture
        elif skip_bad:
            refused[file.image] = picture
        else:
            raise ValueError(picture)
    return usable, refused


def encode(tower, pictures: Mapping[ImageFile, Picture]) -> list[tuple[Record, VisionFeatures]]:
    """Run a batch of images through the tower."""
    pixels = [p.pixels if p.pixels.ndim == 4 else p.pixels[None] for p in pictures.values()]
    described = tower.features_of(pixels) if pixels else []
    images = []
    for (file, picture), features in zip(pictures.items(), described, strict=True):
        if file.stamp is None:
            raise ValueError(f"{file.image} was put there while the cache was being built. Run again.")
        crops, tokens = features.tokens.shape[:2]
        images.append((Record(file.image, file.stamp, picture.size, (crops, tokens)), features))
    return images


class ShardWriter:
    """Collects encoded images, and writes a shard when the next batch might not fit.

    Args:
        folder, key: of the cache.
        full: a shard of more images than that is written.
    """

    def __init__(self, folder: Path, key: dict, full: int):
        self.folder, self.key, self.full = folder, key, full
        self.images: list[tuple[Record, VisionFeatures]] = []

    def add(self, images: Sequence[tuple[Record, VisionFeatures]]) -> None:
        """Add the images of a batch."""
        self.images += images
        size = sum(features.tokens.nbytes for _, features in self.images)
        if len(self.images) > self.full or size >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        if self.images:
            write_shard(self.folder, self.key, self.images)
            self.images = []


def write_shard(folder: Path, key: dict, images: Sequence[tuple[Record, VisionFeatures]]) -> None:
    """Write a shard whole or not at all. Its name follows from the images' names: two processes' never clash."""
    records, features = zip(*images, strict=True)
    tensors = {"tokens": torch.cat([f.tokens.flatten(0, 1) for f in features]).cpu()}  # (R, C)
    if key["visionzip"]:
        tensors["position"] = torch.cat([f.position.flatten() for f in features]).cpu()  # (R,)
    name = hashlib.sha256(json.dumps([record.image for record in records]).encode()).hexdigest()[:16]
    path = folder / f"features-{name}.safetensors"
    draft = folder / f".{path.name}.{os.getpid()}"
    content = save(tensors, metadata={"key": json.dumps(key), "images": json.dumps(records)})
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): it takes {len(content):,} bytes, {free:,} are free. "
            f"Make room and run again: the shards that were finished are kept."
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def remove_old_drafts(folder: Path) -> None:
    """Remove drafts of builds that were killed while writing; those of processes still at work are young."""
    for draft in folder.glob(".features-*"):
        with suppress(FileNotFoundError):  # finished or removed in the meantime
            if time.time() - draft.stat().st_mtime > OLD_DRAFT:
                draft.unlink()


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return the size in bytes and the time in ns of a file; None if there is none."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # reading it gives a better message
        return None
    return stat.st_size, stat.st_mtime_ns


def refuse_changed(files: Sequence[ImageFile], cache: FeatureCache) -> None:
    """Raise ValueError if the file of a cached image has changed: it has another size or another time."""
    places = ((file, cache.places.get(file.image)) for file in files if file.stamp)
    changed = [place for file, place in places if place and place.record.stamp != file.stamp]
    if changed:
        shards = sorted({place.shard.name for place in changed})
        raise ValueError(
            f"{len(changed)} images have changed since their features were cached in {cache.folder}, "
            f"{changed[0].record.image} first (another size or time). Delete {', '.join(shards)} there and run again: "
            f"the images of those files are then computed anew."
        )


def log_expected_size(folder: Path, images: Sequence[tuple[Record, VisionFeatures]], count: int) -> None:
    """Log how large the features of `count` more images will be, judging by the first ones."""
    expected = sum(features.tokens.nbytes for _, features in images) / len(images) * count
    free = shutil.disk_usage(folder).free
    level = logging.INFO if expected < free else logging.WARNING
    logger.log(
        level, "Features of %d images: about %.2f GB in %s (%.2f GB free).", count, expected / 1e9, folder, free / 1e9
    )
