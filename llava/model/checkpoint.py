"""What a folder or hub id holds, decided from config.json and the files present, never from the folder's name.

Kinds: "full" (LLaVA's own format), "hf" (Hugging Face's LLaVA and LLaVA-NeXT format), "projector" (`mm_projector.bin`,
needs a base language model), "lora" (adapter files, needs a base language model), "text" (no vision at all).
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from llava.model.hub import find, require_reachable, what_is_there
from llava.model.values import ADAPTER as ADAPTER_CONFIG
from llava.model.values import check_config, check_values
from llava.model.weight_files import WEIGHTS, load_tensors, missing, weight_map
from llava.utils.files import read_object

PROJECTOR = ("mm_projector.safetensors", "mm_projector.bin")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
TOKENIZER = ("tokenizer.model", "tokenizer.json", "vocab.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOWER_KEYS = "model.vision_tower.vision_tower."
LANGUAGE_MODELS = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}
CONTENTS = {
    "full": "a whole LLaVA model",
    "hf": "a model in Hugging Face's LLaVA format",
    "projector": "only a projector",
    "lora": "only LoRA weights",
    "text": "a language model without vision",
}


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
