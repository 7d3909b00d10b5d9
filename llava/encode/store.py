"""Cache what the frozen vision tower makes of images: computed once, read by every later epoch.

A cache is a folder of safetensors shards. The header of a shard says which setting made it and which images it holds,
so there is no index to keep in step, a killed build loses only the shard it was at, and features of another tower,
budget or preprocessing are never taken for these. `key.json` next to the shards is for people to read.

The tower's output is stored bit for bit. In a batch of another size, or on other hardware, the tower itself may round
the last bit differently.

`llava.encode.build` fills a cache.

Shapes: N tokens of a crop, C channels of the tower, R rows of a shard: the tokens of all crops of all its images.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from llava.model.anyres import is_anyres, parse_pinpoints
from visionzip_patch.config import with_current_names

FORMAT = 1


class CachedImage(NamedTuple):
    """The features of one image, as `VisionTower.features_of` computed them."""

    tokens: Tensor  # (crops, N, C)
    position: Tensor | None  # (crops, N) int64, see visionzip_patch.token_order; None without VisionZip
    size: tuple[int, int]  # width and height of the original, in pixels


class Record(NamedTuple):
    """The entry of an image in a shard's header; its rows follow those of the image before it."""

    image: str
    stamp: tuple[int, int]  # of the file from which the features were computed
    size: tuple[int, int]
    shape: tuple[int, int]  # crops, N


class Place(NamedTuple):
    """The place of an image's features."""

    shard: Path
    start: int  # first row
    record: Record


def cache_key(model, image_processor) -> dict:
    """Collect everything that decides an image's tokens, as JSON has it: features of equal keys are interchangeable.

    The tower's weights are hashed as they are in memory, so all of them must be there (not partitioned by ZeRO-3).
    """
    tower, config = model.get_vision_tower(), model.config
    side = tower.config.image_size
    shapeless = ("model_type", "image_size", "patch_size", "num_attention_heads", "hidden_act", "layer_norm_eps")
    key = {
        "format": FORMAT,
        "tower_weights": fingerprint_of(tower.vision_tower),
        "tower_config": {name: getattr(tower.config, name) for name in shapeless},  # what the weights do not show
        "select_layer": tower.select_layer,
        "select_feature": tower.select_feature,
        "channels": tower.hidden_size,
        "dtype": str(tower.dtype).removeprefix("torch."),
        "visionzip": tower.reducer and tower.reducer.config.to_dict(),
        "image_aspect_ratio": getattr(config, "image_aspect_ratio", None),
        "image_grid_pinpoints": parse_pinpoints(config.image_grid_pinpoints, side) if is_anyres(config) else None,
        "image_processor": {"class": type(image_processor).__name__, **image_processor.to_dict()},
    }
    return json.loads(json.dumps(key))  # tuples become lists and enums numbers, as in a key that was read


def fingerprint_of(module: nn.Module) -> str:
    """Compute the sha256 of all weights and buffers of a module: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """Features by image name. Made by `open_cache`.

    A shard's file is mapped when an image of it is first asked for, in the process that asks: the cache can be sent to
    or inherited by workers of a DataLoader.
    """

    def __init__(self, folder: Path, key: dict, places: dict[str, Place]):
        self.folder, self.key, self.places = folder, key, places
        self._shards: dict[Path, safe_open] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_shards": {}}

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> CachedImage:
        if name not in self.places:
            raise ValueError(
                f"{name} is not among the {len(self)} images in the feature cache {self.folder}. Add it by build_cache."
            )
        path, start, record = self.places[name]
        if path not in self._shards:
            self._shards[path] = safe_open(path, framework="pt")
        shard, (crops, count) = self._shards[path], record.shape

        def read(tensor: str) -> Tensor:
            # Cloned: a view would take the whole shard along when a worker sends it to its parent.
            rows = shard.get_slice(tensor)[start : start + crops * count].clone()
            return rows.unflatten(0, (crops, count))

        return CachedImage(read("tokens"), read("position") if self.key["visionzip"] else None, record.size)

    def dummy(self) -> CachedImage:
        """Make an image of one token of zeros, for a batch without images."""
        tokens = torch.zeros(1, 1, self.key["channels"], dtype=getattr(torch, self.key["dtype"]))
        return CachedImage(tokens, torch.zeros(1, 1, dtype=torch.long) if self.key["visionzip"] else None, (1, 1))


def open_cache(folder: str | Path, key: dict) -> FeatureCache:
    """Open a cache with the images that `folder` holds by now. Reads only the shards' headers.

    Args:
        folder: made by `llava.encode.build.build_cache`.
        key: what the features must have been made with, from `cache_key`.

    Raises:
        ValueError: no folder, a damaged shard, or features made with another key; the fields that differ are named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder with cached features: fill one with build_cache first.")
    places = {}
    for path in sorted(folder.glob("features-*.safetensors")):
        start = 0
        for record in read_records(path, key):
            places[record.image] = Place(path, start, record)
            start += record.shape[0] * record.shape[1]
    return FeatureCache(folder, key, places)


def read_records(path: Path, key: dict) -> list[Record]:
    """Read which images a shard holds, in order. Raises ValueError if it is damaged or was made with another key."""
    try:
        with safe_open(path, framework="pt") as shard:
            metadata = {name: json.loads(text) for name, text in shard.metadata().items()}
        stored, images = with_current_names(metadata["key"]), metadata["images"]
    except (SafetensorError, OSError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}). Delete it and run again: its images are then computed anew."
        ) from None
    if stored != key:
        raise ValueError(
            f"The features in {path.parent} are stale: {'; '.join(differences(stored, key))}. "
            f"Choose another folder for the new ones, or delete this one."
        )
    return [Record(image, tuple(stamp), tuple(size), tuple(shape)) for image, stamp, size, shape in images]


def differences(stored, wanted, field: str = "") -> Iterator[str]:
    """Yield each field in which two keys differ, with both values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in stored | wanted:
            yield from differences(stored.get(name), wanted.get(name), f"{field}.{name}".lstrip("."))
    elif stored != wanted:
        yield f"{field} was {stored!r}, now it is {wanted!r}"
