"""Save and load the trained part of a model, in the files and under the names that loaders expect.

projector   mm_projector.bin, config.json
lora        adapter_model.safetensors, adapter_config.json, non_lora_trainables.bin, config.json
full        a whole checkpoint

`save` writes into a folder; the caller sees to it that the folder appears whole or not at all.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from llava.model.checkpoint import ADAPTER, NON_LORA, PROJECTOR
from llava.model.hub import find
from llava.model.tokenizer import save_tokenizer
from llava.model.weight_files import WEIGHTS, load_tensors, weight_map
from llava.model.weights import copy_weights, refuse
from llava.train.sharding import collect, gathered


def save(
    part: str, model: nn.Module, tokenizer, folder: str | Path, dtype: torch.dtype | None = None, *, writes: bool
) -> None:
    """Write the trained `part` ("projector", "lora" or "full") of `model`; every process has to call this.

    Args:
        dtype: of the weights; by default each as it is trained.
        writes: whether this process writes; the others only help to gather partitioned weights.
    """
    state = collect(model, lambda name, parameter: parameter.requires_grad or part == "full", keep=writes)
    if not writes:
        return
    if dtype is not None:
        state = {key: value.to(dtype) for key, value in state.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    SAVERS[part](model, tokenizer, Path(folder), state)


def save_projector(model: nn.Module, tokenizer, folder: Path, state: dict[str, Tensor]) -> None:
    """Write mm_projector.bin and config.json."""
    torch.save(state, folder / PROJECTOR[1])
    save_config(model, folder)


def save_lora(model, tokenizer, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the adapter, what else was trained, and config.json."""
    adapter = {key: value for key, value in state.items() if "lora_" in key}
    others = {key: value for key, value in state.items() if "lora_" not in key}
    model.save_pretrained(folder, state_dict=adapter, save_embedding_layers=False)
    torch.save(others, folder / NON_LORA[1])
    save_config(model, folder)


def save_config(model, folder: Path) -> None:
    """Write config.json without the quantization of the base."""
    config = copy.copy(model.config)
    config.__dict__.pop("quantization_config", None)  # of the base while it was trained on: the trained part fits any
    config.save_pretrained(folder)


def save_full(model, tokenizer, folder: Path, state: dict[str, Tensor]) -> None:
    """Write a whole checkpoint."""
    model.save_pretrained(folder, state_dict=state)
    if tokenizer is not None:  # another program's trainer may have none
        save_tokenizer(tokenizer, folder)


SAVERS = {"projector": save_projector, "lora": save_lora, "full": save_full}


def load_trained(part: str, model: nn.Module, folder: str | Path) -> None:
    """Load what `save` wrote into the model it came from.

    Raises:
        ValueError: files are missing, or are not of this part of this model.
    """
    if part == "lora":
        load_adapter(model, folder)
        return
    names = PROJECTOR if part == "projector" else WEIGHTS
    tensors = read_weights(folder, names)
    own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    refuse(own - tensors.keys(), "missing from", str(folder))
    copy_weights(model, {key: tensors[key] for key in own}, str(folder))


def load_adapter(model: nn.Module, folder: str | Path) -> None:
    """Load LoRA weights, and what was trained with them, into a model that peft has wrapped."""
    from peft import set_peft_model_state_dict

    with gathered([parameter for name, parameter in model.named_parameters() if "lora_" in name], write=True):
        result = set_peft_model_state_dict(model, read_weights(folder, ADAPTER))
    refuse(set(result.unexpected_keys), "not expected in", str(folder))
    others = read_weights(folder, NON_LORA)
    with gathered([parameter for name, parameter in model.named_parameters() if name in others], write=True):
        copy_weights(model, others, str(folder))


def read_weights(folder: str | Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the tensors of the first of some files that is in `folder`, or of the shards that it lists."""
    file = next((file for name in names if (file := find(str(folder), name, {}))), None)
    if file is None:
        raise ValueError(f"{folder} holds none of {', '.join(names)}: it is not what such a run saves.")
    if not file.endswith(".index.json"):
        return load_tensors(file)
    tensors = {}
    for shard in sorted(set(weight_map(file).values())):
        tensors |= load_tensors(str(Path(folder, shard)))
    return tensors
