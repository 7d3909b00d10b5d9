"""Files of weights: read, or refused with the name of the file and what may be wrong with it."""

import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from llava.model.hub import HUB_ARGUMENTS, find, what_is_there
from llava.model.library_errors import blaming, reason
from llava.utils.files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
READ_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
Model = TypeVar("Model", bound="PreTrainedModel")


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
