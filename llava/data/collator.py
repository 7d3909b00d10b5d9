"""Samples of different lengths, with and without images -> one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX

VISION_KEYS = ("images", "vision_tokens", "vision_positions", "image_sizes")


@dataclass
class DataCollatorForSupervisedDataset:
    """Samples of `LazySupervisedDataset` -> arguments of the model.

    Args:
        pad_token_id: fills up on the right. What is padding is known by length: a text may hold this id too.
        dummy: makes one image entry, put into a batch without images, so that several processes run tower and
            projector alike; the model lets it change nothing. None for a model without images.
    """

    pad_token_id: int
    dummy: Callable[[], dict] | None

    def __call__(self, samples: Sequence[dict]) -> dict:
        """Make a batch of B samples, with n images.

        Returns:
            input_ids, labels: (B, T) int64.
            attention_mask: (B, T) bool.
            skipped: how many of the samples are there without their images.
            images: (n, 3, S, S), or a list if there are crops or several shapes.
            vision_tokens, vision_positions: lists, in place of `images`, if the samples have them.
            image_sizes: list of (width, height).
            What the samples have nothing of is left out.
        """
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        batch = {
            "input_ids": self._pad(samples, "input_ids", self.pad_token_id),  # first: batch sizes are read off it
            "labels": self._pad(samples, "labels", IGNORE_INDEX),
            "attention_mask": torch.arange(int(lengths.max())) < lengths[:, None],
            "skipped": sum(sample["skipped"] for sample in samples),
        }
        vision = {key: [entry for sample in samples for entry in sample.get(key, ())] for key in VISION_KEYS}
        if not vision["image_sizes"] and self.dummy is not None:
            vision = self.dummy()
        batch.update({key: entries for key, entries in vision.items() if entries})
        if "images" in batch:
            batch["images"] = stack(batch["images"])
        return batch

    def _pad(self, samples: Sequence[dict], key: str, value: int) -> Tensor:
        """Pad one field of all samples on the right: (B, T)."""
        return pad_sequence([sample[key] for sample in samples], batch_first=True, padding_value=value)


def stack(images: list[Tensor]) -> Tensor | list[Tensor]:
    """Stack images without crops and of one shape into a tensor; return others as they are, a list."""
    return torch.stack(images) if images[0].ndim == 3 and len({image.shape for image in images}) == 1 else images
