"""Where a model's weights go, in which dtype, quantized or not: the arguments of `from_pretrained`."""

from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig

NEVER_QUANTIZED = ["lm_head", "model.vision_tower", "model.mm_projector"]  # full names: parts would not match


def placement_of(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs) -> dict:
    """Make the arguments of `from_pretrained` that say where weights go, in which dtype, quantized or not.

    Args:
        device: as for `load_pretrained_model`, like all others.
        device_map: used if `device` is "cuda" and there is a GPU.
        load_8bit: quantize to 8 bits.
        load_4bit: quantize to 4 bits.
        use_flash_attn: run flash-attn 2.
        kwargs: what else the caller gives to `from_pretrained`.

    Raises:
        ValueError: both quantizations.
        ImportError: a package that is needed is not installed.
    """
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit exclude each other.")
    if (load_8bit or load_4bit) and not find_spec("bitsandbytes"):
        raise ImportError("load_8bit and load_4bit need bitsandbytes: pip install bitsandbytes.")
    if use_flash_attn and not find_spec("flash_attn"):
        raise ImportError(
            "use_flash_attn needs flash-attn: pip install --no-build-isolation flash-attn. Without the flag, "
            "PyTorch's own attention (SDPA) runs."
        )
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    if device != torch.device("cuda") or device_map is None:
        device_map = {"": device}
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    on_cpu = all(str(place) == "cpu" for place in places)
    placement = dict(kwargs)
    dtype = placement.pop("torch_dtype", None) or placement.pop("dtype", None)
    placement["dtype"] = dtype or (torch.float32 if on_cpu else torch.float16)
    placement["device_map"] = device_map
    if use_flash_attn:
        placement["attn_implementation"] = "flash_attention_2"
    if load_8bit or load_4bit:
        placement["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit,
            load_in_4bit=load_4bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=placement["dtype"],
            llm_int8_skip_modules=NEVER_QUANTIZED,
        )
    return placement
