"""LLaVA's instruction data, one sample at a time: nothing is opened or tokenized before it is asked for."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.data.preprocess import Example, preprocess
from llava.data.records import image_names, other_media, questions_of, turn_texts
from llava.mm_utils import load_image, process_images

IMAGE_WORDS = 128  # how many words an image counts as, where batches are grouped by length; LLaVA's number


class LazySupervisedDataset(Dataset):
    """Samples of records `{"id": …, "image": name | [names] | absent, "conversations": [turns]}`.

    A sample is a dict of

    - input_ids, labels: (T,) int64, see `preprocess`.
    - images: per image (3, S, S), or with anyres (crops, 3, S, S).
    - vision_tokens, vision_positions: in place of `images` if there is a cache; per image (crops, N, C) and
      (crops, N) int64. The positions are an empty list if the cache holds none.
    - image_sizes: per image (width, height) in pixels.
    - skipped: bool, whether an image was bad. Such a sample is its text alone, and nothing of it is trained.

    Args:
        records: of LLaVA's JSON.
        tokenizer: a fast one, with the model's ids.
        conversation: the template.
        image_folder: where image names begin. None: they are paths by themselves.
        image_processor: the vision tower's; not needed with a cache, or for text alone.
        config: the model's, for `image_aspect_ratio`, `image_grid_pinpoints` and `mm_use_im_start_end`.
        cache: features by image name, in place of pixels: `cache[name]` has `tokens`, `position` (or None) and `size`,
            and raises ValueError for an image that it does not hold; `cache.dummy()` has the same fields.
        skip_bad: skip images that cannot be read.
        max_length: see `preprocess`.

    Raises:
        ValueError: images cannot be prepared as `config` says; when a sample is asked for: a conversation that cannot
            be learnt from, other numbers of images and of <image>, another medium, or an image that cannot be read and
            `skip_bad` is off. The record's id is named.
    """

    def __init__(
        self,
        records: list[dict],
        tokenizer,
        *,
        conversation: Conversation,
        image_folder: str | Path | None,
        image_processor=None,
        config=None,
        cache=None,
        skip_bad: bool = False,
        max_length: int | None = None,
    ):
        self.records, self.tokenizer, self.conversation = records, tokenizer, conversation
        self.image_folder, self.image_processor, self.config = Path(image_folder or ""), image_processor, config
        self.cache, self.skip_bad, self.max_length = cache, skip_bad, max_length
        if image_processor is not None:  # a config that no image can be prepared with must not pass for bad images
            self.pixel_shape = process_images(Image.new("RGB", (1, 1)), image_processor, config)[0].shape[-3:]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        try:
            example = self._example(record)
        except ValueError as error:
            raise ValueError(f"Record {record.get('id')!r}: {error}.") from None
        try:
            return {**example._asdict(), **self._images(image_names(record)), "skipped": False}
        except ValueError as error:
            if not self.skip_bad:
                raise ValueError(f"Record {record.get('id')!r}: {error}") from error
        ids = example.input_ids[example.input_ids != IMAGE_TOKEN_INDEX][: self.max_length]
        return {"input_ids": ids, "labels": torch.full_like(ids, IGNORE_INDEX), **self._images([]), "skipped": True}

    @property
    def lengths(self) -> list[int]:
        """Estimate the length of each sample: its words, and 128 more if it has an image."""
        return [words(record) + IMAGE_WORDS * bool(image_names(record)) for record in self.records]

    @property
    def modality_lengths(self) -> list[int]:
        """Count the words of each sample; the number is negative if it has no image."""
        return [words(record) if image_names(record) else -words(record) for record in self.records]

    def dummy(self) -> dict:
        """Make one image of zeros, as a part of a sample: for batches without any image."""
        if self.cache is not None:
            return cached([self.cache.dummy()])
        _, height, width = self.pixel_shape
        return {"images": [torch.zeros(self.pixel_shape)], "image_sizes": [(width, height)]}

    def _example(self, record: dict) -> Example:
        """Make ids and labels of a record; ValueError if nothing can be trained on them."""
        turns, names = record.get("conversations"), image_names(record)
        found = sum(text.count(DEFAULT_IMAGE_TOKEN) for text in turn_texts(turns))
        if media := other_media(record, questions_of(record)):
            raise ValueError(f"it brings {media[0].kind}: {media[0].detail}")
        if found != len(names):
            raise ValueError(
                f"its conversation says {DEFAULT_IMAGE_TOKEN} {found} times, but it has {len(names)} images {names}"
            )
        return preprocess(
            record["conversations"],
            self.tokenizer,
            self.conversation,
            has_image=bool(names),
            use_start_end=getattr(self.config, "mm_use_im_start_end", False),
            max_length=self.max_length,
        )

    def _images(self, names: Sequence[str]) -> dict:
        """Read images as a part of a sample: from the cache, or as pixels."""
        if self.cache is not None:
            return cached([self.cache[name] for name in names])
        images = [load_image(self.image_folder / name) for name in names]
        pixels = [process_images(image, self.image_processor, self.config)[0] for image in images]
        return {"images": pixels, "image_sizes": [image.size for image in images]}


def words(record: dict) -> int:
    """Count the words of a conversation."""
    return sum(len(turn["value"].split()) for turn in record["conversations"])


def cached(entries: Sequence) -> dict:
    """Put entries of a feature cache under the names that a sample has them by."""
    return {
        "vision_tokens": [entry.tokens for entry in entries],
        "vision_positions": [entry.position for entry in entries if entry.position is not None],
        "image_sizes": [entry.size for entry in entries],
    }
