"""What a folder or hub id holds, decided from config.json and the files present, never from the folder's name.

Kinds: "full" (LLaVA's own format), "hf" (Hugging Face's LLaVA and LLaVA-NeXT format), "projector" (`mm_projector.bin`,
needs a base language model), "lora" (adapter files, needs a base language model), "text" (no vision at all).
"""

import logging
import os
import pickle
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.hub import cached_file

from llava.files import read_object
from llava.model.values import ADAPTER as ADAPTER_CONFIG
from llava.model.values import blaming, check_config, check_values, reason

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PROJECTOR = ("mm_projector.safetensors", "mm_projector.bin")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
TOKENIZER = ("tokenizer.model", "tokenizer.json", "vocab.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
LONGEST_HUB_ID = 96
READ_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
TOWER_KEYS = "model.vision_tower.vision_tower."
LANGUAGE_MODELS = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}
CONTENTS = {
    "full": "a whole LLaVA model",
    "hf": "a model in Hugging Face's LLaVA format",
    "projector": "only a projector",
    "lora": "only LoRA weights",
    "text": "a language model without vision",
}


if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")


@dataclass(frozen=True)
class Checkpoint:
    """A folder or hub id that has been looked at."""

    path: str
    kind: str
    config: dict  # of config.json; {} if there is none
    hub: dict = field(default_factory=dict)  # how to fetch from the hub: HUB_ARGUMENTS

    @classmethod
    def inspect(cls, path: str | os.PathLike, **hub) -> "Checkpoint":
        """Find out from the files what kind of checkpoint they make.

        Args:
            path: folder or hub id.
            **hub: how to fetch from the hub: HUB_ARGUMENTS.

        Raises:
            ValueError: they make no checkpoint, with what was found; or a field of a config file is out of range.
        """
        path = str(path)
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ValueError(f"No checkpoint at {path!r}: safetensors opens files with names in UTF-8 only.") from None
        require_reachable(path, hub)
        config_file, adapter_file = find(path, "config.json", hub), find(path, "adapter_config.json", hub)
        if not config_file and not adapter_file:
            raise ValueError(
                f"No checkpoint at {path!r}: {what_is_there(path)} Expected a folder or hub id with config.json."
            )
        config = {}
        if config_file:
            config = read_object(config_file)
            check_config(config, config_file)
        if adapter_file:
            check_values(read_object(adapter_file), ADAPTER_CONFIG, adapter_file)
            return cls(path, "lora", config, hub)
        if any(find(path, name, hub) for name in WEIGHTS):
            if "text_config" in config:
                return cls(path, "hf", config, hub)
            return cls(path, "full" if config.get("mm_vision_tower") else "text", config, hub)
        if any(find(path, name, hub) for name in PROJECTOR):
            return cls(path, "projector", config, hub)
        raise ValueError(
            f"{path!r} has a config.json but no weights: {what_is_there(path)} Expected one of "
            f"{', '.join(WEIGHTS)}, or {PROJECTOR[1]} (projector-only), or adapter_config.json (LoRA)."
        )

    def find(self, *names: str) -> str | None:
        """Return the path, on this disk, of the first of some files that exists; None if none does."""
        return next((file for name in names if (file := find(self.path, name, self.hub))), None)

    def require(self, name: str) -> str:
        """Return the path, on this disk, of a file.

        Raises:
            ValueError: it does not exist.
        """
        if file := self.find(name):
            return file
        raise ValueError(f"{self.path!r} has no {name}: {what_is_there(self.path)}")

    def tensors(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Load the first of some weight files that exists, on the CPU. `.bin` files may hold tensors only.

        Raises:
            ValueError: none of them exists, or it is no file of tensors.
        """
        if file := self.find(*names):
            return load_tensors(file)
        raise ValueError(f"{self.path!r} has none of {', '.join(names)}: {what_is_there(self.path)}")

    def has_tokenizer(self) -> bool:
        """Return whether there are files of a tokenizer."""
        return self.find(*TOKENIZER) is not None

    def weight_names(self) -> set[str]:
        """Return the names of the weights in the model's own files, as written there; the weights are not read."""
        file = self.find(*WEIGHTS)
        if file is None:
            return set()
        if file.endswith(".json"):
            return set(weight_map(file))
        return set(load_tensors(file, device="meta"))

    def tensors_of_model(self, names: Collection[str]) -> dict[str, Tensor]:
        """Load some weights of the model's own files, on the CPU, and no others.

        Raises:
            ValueError: a file is missing or cannot be read.
        """
        if not names or (file := self.find(*WEIGHTS)) is None:
            return {}
        files = dict.fromkeys(names, file)
        if file.endswith(".json"):
            places = weight_map(file)
            files = {name: self.find(places[name]) or missing(file, places[name]) for name in names if name in places}
        found = {}
        for file in sorted(set(files.values())):
            found |= {name: value for name, value in load_tensors(file).items() if name in names}
        return found


def language_model(config: dict) -> str:
    """Return the model type of ours that a config asks for: "llava_llama", "llava_mistral" or "llava_qwen".

    Args:
        config: `architectures` or `model_type` of a config.json.

    Raises:
        ValueError: neither is known.
    """
    for architecture in config.get("architectures") or []:
        if family := re.fullmatch(r"\w*?(Llama|Mistral|Qwen2?)ForCausalLM", architecture):  # also of LLaVA's forks
            return LANGUAGE_MODELS["qwen2" if family[1] == "Qwen" else family[1].lower()]
    kind = config.get("model_type")
    if kind is None:
        raise ValueError(f"config.json has no model_type; known are {', '.join(LANGUAGE_MODELS)}.")
    if kind == "llava":  # published LLaVA-1.5 and 1.6 say just this
        return "llava_llama"
    if kind in LANGUAGE_MODELS.values():
        return kind
    if kind in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[kind]
    raise ValueError(f"model_type={kind!r} is no language model known here; known are {', '.join(LANGUAGE_MODELS)}.")


def resolve_tower(checkpoint: Checkpoint, base: Checkpoint) -> dict:
    """Return a config that says where the tower is.

    `mm_vision_tower` may be relative to the folder of the checkpoint, or to that of its base, from which config.json
    may have been copied. A tower that was saved in one of them, with its config and its image processor, is there.
    """
    config = dict(checkpoint.config)
    if tower := config.get("mm_vision_tower"):
        places = [resolve_folder(place.path, tower) for place in (checkpoint, base)]
        config["mm_vision_tower"] = next((place for place in places if place != tower), tower)
    if own := config.get("mm_vision_tower_config"):
        folder = processor_folder(checkpoint) or processor_folder(base)
        config["mm_vision_tower_config"] = {**own, "name_or_path": folder}
    return config


def processor_folder(checkpoint: Checkpoint) -> str:
    """Return the folder of a checkpoint's own image processor; "" if it has none."""
    file = checkpoint.find(*PROCESSOR)
    return str(Path(file).parent) if file else ""


def resolve_folder(path: str, name: str) -> str:
    """Return the path of a folder that a checkpoint names: in that checkpoint if it is there, else as it stands."""
    folder = os.path.join(path, name)
    return str(Path(folder).resolve()) if os.path.isdir(folder) else name


def read_model(model_class: type[Model], path: str, **kwargs) -> tuple[Model, set[str], set[str]]:
    """Call `from_pretrained`, and report what is wrong by name in place of tables in the log.

    Args:
        model_class: of transformers or of ours.
        path: folder or hub id.
        **kwargs: of `from_pretrained`.

    Returns:
        The model, the names of its weights that the files lack, and of weights in the files that it lacks.

    Raises:
        ValueError: a weight file is absent or cannot be read; a weight has another shape than the config says; or
            transformers can make no model of the files.
    """
    log = logging.getLogger("transformers.modeling_utils")
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    if (file := next((file for name in WEIGHTS if (file := find(path, name, hub))), "")).endswith(".json"):
        weight_map(file)  # which transformers would follow anywhere
    log.addFilter(is_no_report)
    try:
        with blaming(f"No model can be made of {path!r} with these arguments"):
            loaded: Any = model_class.from_pretrained(  # a pair with output_loading_info, which its type leaves out
                path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    except ValueError as error:
        if isinstance(error.__cause__, READ_ERRORS):
            check_files(path, hub)
        raise
    finally:
        log.removeFilter(is_no_report)
    model, info = loaded
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise ValueError(
            f"{key} in {path} has shape {tuple(found)}, but config.json asks for {tuple(expected)} "
            f"({len(info['mismatched_keys'])} weights differ). The config.json of another model may have been used."
        )
    return model, set(info["missing_keys"]), set(info["unexpected_keys"])


def is_no_report(record: logging.LogRecord) -> bool:
    """Return whether a log record is anything but transformers' table of weights that do not fit."""
    return "LOAD REPORT" not in record.getMessage()


def weight_map(index: str) -> dict[str, str]:
    """Read an index of weights: names of weights, and of the files next to the index that hold them.

    Raises:
        ValueError: the index is no table of weights and of files next to it.
    """
    content = read_object(index)
    table = content.get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{index} has no weight_map, a table of weights and the files they are in: fetch it again.")
    if not isinstance(content.get("metadata"), dict):
        raise ValueError(f"{index} has no metadata, an object, which transformers reads: fetch it again.")
    for name in table.values():
        if "\0" in name or name in ("", "..") or Path(name).name != name:
            raise ValueError(f"{index} says that weights are in {name!r}; expected the name of a file beside it.")
    return table


def check_files(path: str, hub: dict) -> None:
    """Refuse a model's weight files if one is missing or cannot be read.

    Raises:
        ValueError: the file is named.
    """
    file = next((file for name in WEIGHTS if (file := find(path, name, hub))), None)
    if file is None:
        raise ValueError(f"{path!r} has none of {', '.join(WEIGHTS)}: {what_is_there(path)}")
    names = set(weight_map(file).values()) if file.endswith(".json") else {Path(file).name}
    for name in sorted(names):
        load_tensors(find(path, name, hub) or missing(file, name), device="meta")


def missing(index: str, name: str) -> NoReturn:
    """Raise ValueError: a file that an index names is not there."""
    raise ValueError(f"{index} names {name}, but it is not there: the download is incomplete.")


def load_tensors(file: str, device: str = "cpu") -> dict[str, Tensor]:
    """Load the tensors of a `.safetensors` or `.bin` file. Of a `.bin`, tensors only: nothing in it is ever run.

    Raises:
        ValueError: the file holds something else, or is damaged.
    """
    try:
        if file.endswith(".safetensors"):
            if device == "meta":
                with safe_open(file, "pt") as opened:
                    shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
                return {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
            return load_file(file, device=device)
        tensors = torch.load(file, map_location=device, weights_only=True)
    except (ValueError, KeyError, *READ_ERRORS) as error:
        why = reason(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{file} ({Path(file).stat().st_size} bytes) cannot be read as tensors ({why}). Either it is damaged or a "
            f"Git LFS pointer: fetch it again. Or it is a pickle that holds other things too, which are never run: "
            f"where you trust it, convert it to safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file} holds no table of tensors by name; a training state may lie there in their place.")
    return tensors


def require_reachable(path: str, hub: dict) -> None:
    """Refuse a hub id that neither the hub nor the cache has: asked once, not once per file.

    Raises:
        ValueError: it cannot be fetched, and why.
    """
    if os.path.exists(path) or not is_hub_id(path):
        return
    try:
        cached_file(path, "config.json", **hub)
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"No checkpoint at {path!r}: there is no such folder, and it cannot be fetched as a hub id ({reason})."
        ) from error


def find(path: str, name: str, hub: dict) -> str | None:
    """Return where a checkpoint's file is on this disk, downloaded if `path` is a hub id; None if there is none."""
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return file if os.path.isfile(file) else None
    if os.path.exists(path) or not is_hub_id(path):
        return None
    return cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **hub,
    )


def is_hub_id(path: str) -> bool:
    """Return whether a text may be a model's id on the hub: `name` or `owner/name`."""
    return len(path) <= LONGEST_HUB_ID and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None


def what_is_there(path: str) -> str:
    """Describe what is found at a path, as the end of a sentence."""
    if os.path.isdir(path):
        names = sorted(entry.name + ending(entry) for entry in Path(path).iterdir())
        return f"the folder holds {', '.join(names[:12]) or 'nothing'}{' …' if len(names) > 12 else ''}."
    if os.path.exists(path):
        return "it is a file."
    if not is_hub_id(path):
        return "there is no such folder."
    return "there is no such folder, but a hub id of that name."


def ending(entry: Path) -> str:
    """Return what follows the name of a folder or a device in a list of names; nothing follows a file's."""
    return "" if entry.is_file() else "/" if entry.is_dir() else " (no file)"
