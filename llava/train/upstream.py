"""Offer what programs import from upstream's train.py, over our data, model and saving code.

They find it in `llava.train.train`. As in upstream's, the template is `llava.conversation.default_conversation`, which
such programs set before they make a dataset.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llava import conversation
from llava.constants import IGNORE_INDEX
from llava.conversation import SeparatorStyle
from llava.data import collator, dataset
from llava.data.preprocess import images_first, make_example
from llava.data.records import read_records, turn_texts
from llava.model.vocabulary import make_room
from llava.train.llava_trainer import maybe_zero_3, part_of
from llava.train.loading import lora_targets
from llava.train.saving import save

find_all_linear_names = lora_targets


class LazySupervisedDataset(dataset.LazySupervisedDataset):
    """Samples of a file in LLaVA's JSON: `input_ids` and `labels` (T,), `image` (3, S, S) and `image_size`.

    Args:
        data_path: the file.
        tokenizer: a fast one, with the model's ids; `model_max_length` cuts text without an image.
        data_args: `image_folder`, `image_processor`, `image_aspect_ratio`, `is_multimodal`, `mm_use_im_start_end` (none
            is no). If multimodal, a sample without an image has one of zeros.

    Raises:
        ValueError: see `llava.data.dataset.LazySupervisedDataset`; also for a sample with several images.
    """

    def __init__(self, data_path: str, tokenizer, data_args):
        super().__init__(
            read_records(data_path),
            tokenizer,
            conversation=conversation.default_conversation,
            image_folder=data_args.image_folder,
            image_processor=getattr(data_args, "image_processor", None),
            config=data_args,
            max_length=longest(tokenizer),
        )
        self.list_data_dict, self.data_args = self.records, data_args

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        item = {name: sample[name] for name in ("input_ids", "labels")}
        shown = sample
        if not sample["images"] and self.data_args.is_multimodal:
            shown = self.dummy()
        if len(shown["images"]) > 1:
            raise ValueError(
                f"Record {self.records[i].get('id')!r} has {len(shown['images'])} images, and a sample here has one: "
                f"llava.data.dataset.LazySupervisedDataset gives all of them."
            )
        for image, size in zip(shown["images"], shown["image_sizes"], strict=True):
            item |= {"image": image, "image_size": size}
        return item


@dataclass
class DataCollatorForSupervisedDataset:
    """Makes arguments of the model from samples of `LazySupervisedDataset`, cut to `tokenizer.model_max_length`."""

    tokenizer: Any

    def __call__(self, instances: Sequence[dict]) -> dict:
        """Make a batch: `input_ids`, `labels` and `attention_mask`, (B, T); for samples with an image also `images`.

        These are (B, 3, S, S), or a list where shapes differ; `image_sizes` come with them.
        """
        end = longest(self.tokenizer)
        samples = [
            {
                "input_ids": instance["input_ids"][:end],
                "labels": instance["labels"][:end],
                "images": [instance["image"]] if "image" in instance else [],
                "image_sizes": [instance["image_size"]] if "image_size" in instance else [],
                "skipped": False,
            }
            for instance in instances
        ]
        batch = collator.DataCollatorForSupervisedDataset(self.tokenizer.pad_token_id, dummy=None)(samples)
        del batch["skipped"]
        return batch


def longest(tokenizer) -> int:
    """Return how many ids a sample may have: what the tokenizer says, at most what a tensor can hold."""
    return min(tokenizer.model_max_length, sys.maxsize)


def make_supervised_data_module(tokenizer, data_args) -> dict:
    """Make dataset and collator, as arguments of a trainer."""
    return {
        "train_dataset": LazySupervisedDataset(data_args.data_path, tokenizer, data_args),
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }


def preprocess_multimodal(sources: Sequence[Sequence[dict]], data_args) -> Sequence[Sequence[dict]]:
    """Move the image tokens of each turn to its front, in the form of the template; in place, and returned."""
    if data_args.is_multimodal:
        has_marks = getattr(data_args, "mm_use_im_start_end", False)
        for turn in (turn for source in sources for turn in source):
            turn["value"] = images_first(turn["value"], conversation.default_conversation, has_marks)
    return sources


def preprocess(sources: Sequence[Sequence[dict]], tokenizer, has_image: bool = False) -> dict[str, Tensor]:
    """Tokenize conversations, and label their answers: `input_ids` and `labels`, (B, T), padded on the right.

    Args:
        sources: conversations, each a list of `{"from": "human" | "gpt", "value": text}`; after
            `preprocess_multimodal`.

    Raises:
        ValueError: a conversation that cannot be trained on, see `llava.data.preprocess.preprocess`.
    """
    examples = [
        make_example(
            turn_texts(source),
            tokenizer,
            conversation.default_conversation,
            has_image=has_image,
            max_length=longest(tokenizer),
        )
        for source in sources
    ]
    ids, labels = zip(*examples, strict=True)
    padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {
        "input_ids": pad_sequence([*ids], batch_first=True, padding_value=padding),
        "labels": pad_sequence([*labels], batch_first=True, padding_value=IGNORE_INDEX),
    }


def preprocess_plain(sources: Sequence[Sequence[dict]], tokenizer) -> dict[str, Tensor]:
    """Tokenize captions, each with an image before it, as `preprocess` does."""
    return for_style(SeparatorStyle.PLAIN)(sources, tokenizer, has_image=True)


def for_style(style: SeparatorStyle) -> Callable[..., dict[str, Tensor]]:
    """Make a `preprocess` that raises ValueError if the template that is set is of another style."""

    def preprocess_style(sources: Sequence[Sequence[dict]], tokenizer, has_image: bool = False) -> dict[str, Tensor]:
        found = conversation.default_conversation.sep_style
        if found is not style:
            raise ValueError(
                f"llava.conversation.default_conversation is of style {found.name}; this function is for {style.name}. "
                f"Set it to a template of that style, or call preprocess, which takes any."
            )
        return preprocess(sources, tokenizer, has_image)

    return preprocess_style


preprocess_v1 = for_style(SeparatorStyle.TWO)
preprocess_llama_2 = for_style(SeparatorStyle.LLAMA_2)
preprocess_mpt = for_style(SeparatorStyle.MPT)


def smart_tokenizer_and_embedding_resize(special_tokens_dict: dict, tokenizer, model: nn.Module) -> None:
    """Add special tokens, with rows for them that begin as the mean of the others, where the model has none."""
    tokenizer.add_special_tokens(special_tokens_dict)
    make_room(model, len(tokenizer))


def safe_save_model_for_hf_trainer(trainer, output_dir: str) -> None:
    """Save what a trainer has trained: the projector (mm_projector.bin), LoRA or the whole model, with its config.

    Every process has to call it. A projector goes to `output_dir`, also if that is a checkpoint-N.
    """
    part = getattr(trainer, "part", None) or part_of(trainer.args)
    model = trainer.accelerator.unwrap_model(trainer.model)
    save(part, model, trainer.processing_class, Path(output_dir), writes=trainer.args.should_save)


def get_peft_state_maybe_zero_3(named_params: Iterable[tuple[str, nn.Parameter]], bias: str) -> dict[str, Tensor]:
    """Copy LoRA's parameters, and biases: "none", "all", or with "lora_only" those of layers with LoRA.

    Raises:
        ValueError: another `bias`.
    """
    if bias not in ("none", "all", "lora_only"):
        raise ValueError(f"bias={bias!r} is unknown; choose none, all or lora_only.")
    params = dict(named_params)
    layers = {name.partition("lora_")[0] for name in params if "lora_" in name}

    def is_wanted(name: str) -> bool:
        if "lora_" in name:
            return True
        if bias == "lora_only":  # of the layer itself, which peft keeps one level down
            return name.endswith("bias") and name.removesuffix("bias").removesuffix("base_layer.") in layers
        return bias == "all" and "bias" in name

    return {name: maybe_zero_3(param) for name, param in params.items() if is_wanted(name)}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: Iterable[tuple[str, nn.Parameter]], require_grad_only: bool = True
) -> dict[str, Tensor]:
    """Copy the parameters that are not LoRA's, by default only those that are trained."""
    return {
        name: maybe_zero_3(param)
        for name, param in named_params
        if "lora_" not in name and (param.requires_grad or not require_grad_only)
    }
