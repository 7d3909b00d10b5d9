"""Offer the names of upstream's trainer module, over `llava.train.trainer` and `llava.data.sampler`."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from llava.data.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)
from llava.train import trainer
from llava.train.sharding import gathered

__all__ = [
    "LLaVATrainer",
    "LengthGroupedSampler",
    "get_length_grouped_indices",
    "get_mm_adapter_state_maybe_zero_3",
    "get_modality_length_grouped_indices",
    "maybe_zero_3",
    "split_to_even_chunks",
]


class LLaVATrainer(trainer.LLaVATrainer):
    """Train what is unfrozen in `model`; called as upstream's: LLaVATrainer(model=, tokenizer=, args=, **data_module).

    Checkpoints hold what `args` says is trained: with `tune_mm_mlp_adapter` the projector, with `lora_enable` LoRA and
    what is trained with it, else the whole model.
    """

    def __init__(self, model: nn.Module, args, *, tokenizer=None, part: str | None = None, **kwargs):
        if tokenizer is not None:
            kwargs.setdefault("processing_class", tokenizer)
        super().__init__(model, part=part or part_of(args), args=args, **kwargs)


def part_of(args) -> str:
    """Name the part that a run of `args` trains: "projector", "lora" or "full"."""
    if getattr(args, "tune_mm_mlp_adapter", False):
        return "projector"
    return "lora" if getattr(args, "lora_enable", False) else "full"


def maybe_zero_3(param: nn.Parameter, ignore_status: bool = False, name: str | None = None) -> Tensor:
    """Copy a parameter to the CPU, whole also where ZeRO-3 has partitioned it; all processes have to call this."""
    with gathered([param]):
        return param.detach().to("cpu", copy=True)


def get_mm_adapter_state_maybe_zero_3(
    named_params: Iterable[tuple[str, nn.Parameter]], keys_to_match: Sequence[str]
) -> dict[str, Tensor]:
    """Copy the parameters whose names contain one of `keys_to_match`, as `maybe_zero_3` does."""
    return {name: maybe_zero_3(p) for name, p in named_params if any(key in name for key in keys_to_match)}
