"""One loader for every kind of LLaVA checkpoint."""

import logging
import re

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.checkpoint import (
    HF_KEYS,
    NON_LORA,
    PROJECTOR,
    TOWER_KEYS,
    Checkpoint,
    from_hf_config,
    language_model,
    load_tensors,
    read_json,
    resolve_tower,
)
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from llava.model.llava_arch import owns_tower
from llava.tokenizer import load_tokenizer
from visionzip_patch.api import attach
from visionzip_patch.config import VisionZipConfig

logger = logging.getLogger(__name__)

CLASSES = {
    "llava_llama": LlavaLlamaForCausalLM,
    "llava_mistral": LlavaMistralForCausalLM,
    "llava_qwen": LlavaQwenForCausalLM,
}
NEVER_QUANTIZED = ["lm_head", "vision_tower", "mm_projector"]


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | dict | None = "auto",
    device: str | torch.device = "cuda",
    use_flash_attn: bool = False,
    visionzip: VisionZipConfig | None = None,
    **kwargs,
):
    """Load any LLaVA checkpoint: full, projector-only, LoRA, or in Hugging Face's format.

    What it is follows from config.json and the files present.

    Args:
        model_path: folder or hub id.
        model_base: the language model that a projector-only or LoRA checkpoint belongs to; a LoRA checkpoint may name
            it itself.
        model_name: not needed; taken because upstream's callers pass it.
        load_8bit, load_4bit: quantize the language model with bitsandbytes (4-bit: NF4); tower and projector stay.
        device_map: where the parts go, as in transformers; used on a GPU.
        device: "cuda" means a GPU if there is one, else the CPU; or any torch device.
        use_flash_attn: the language model runs flash-attn 2; without it, SDPA.
        visionzip: a VisionZip setting; it replaces one that the checkpoint carries.
        kwargs: `dtype` (or `torch_dtype`; default fp16 on a GPU, fp32 on a CPU), `attn_implementation`, and what else
            `from_pretrained` takes. `multimodal` and `customized_config`, which evaluators pass, are ignored.

    Returns:
        tokenizer, model (in eval mode), image processor (None for a model without vision), context length in tokens.

    Raises:
        ValueError: no checkpoint there, a base missing, weights missing or unexpected (named), a bad budget.
    """
    kwargs.pop("multimodal", None)
    kwargs.pop("customized_config", None)
    checkpoint = Checkpoint.inspect(model_path)
    base = checkpoint.path
    if checkpoint.kind in ("projector", "lora"):
        base = find_base(checkpoint, model_base)
    elif model_base is not None:
        logger.warning("%s holds a whole model; model_base=%s is not used.", model_path, model_base)
    config = make_config(checkpoint)
    placement = placement_of(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs)
    model = load_weights(base, checkpoint, config, placement)

    if checkpoint.kind == "projector":
        add_projector(model, checkpoint)
    elif checkpoint.kind == "lora":
        model = add_lora(model, checkpoint)
    tokenizer = load_tokenizer(base)
    if (tower := model.get_vision_tower()) is None:
        return tokenizer, model.eval(), None, context_length(model.config)
    add_image_tokens(model, tokenizer)
    if not tower.is_loaded:  # after LoRA, whose target names would match the tower's layers too
        tower.load_model(dtype=model.dtype)
    tower.to(device=model.device, dtype=model.dtype)
    if visionzip is not None:
        attach(model, visionzip)
    return tokenizer, model.eval(), tower.image_processor, context_length(model.config)


def find_base(checkpoint: Checkpoint, model_base: str | None) -> str:
    """Folder or hub id of the language model that a projector-only or LoRA checkpoint goes on."""
    if model_base is None and checkpoint.kind == "lora":
        model_base = read_json(checkpoint.path, "adapter_config.json").get("base_model_name_or_path")
    if not model_base:
        raise ValueError(
            f"{checkpoint.path!r} holds only {'LoRA weights' if checkpoint.kind == 'lora' else 'a projector'}: "
            f"pass model_base, the folder or hub id of the language model it was trained on."
        )
    return resolve_tower({"mm_vision_tower": model_base}, checkpoint.path)["mm_vision_tower"]


def make_config(checkpoint: Checkpoint):
    """The config of our class for a checkpoint, with the tower's place settled."""
    if checkpoint.kind == "lora" and not checkpoint.config:
        raise ValueError(
            f"{checkpoint.path!r} has adapter files but no config.json: it does not say which tower it uses."
        )
    values = checkpoint.config
    values = (
        from_hf_config(values, checkpoint.path) if checkpoint.kind == "hf" else resolve_tower(values, checkpoint.path)
    )
    kind = language_model(values)
    return CLASSES[kind].config_class.from_dict({**values, "model_type": kind})


def placement_of(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs) -> dict:
    """Arguments of `from_pretrained`: where the weights go, in which dtype, quantized or not."""
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit exclude each other.")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    placement = dict(kwargs)
    dtype = placement.pop("torch_dtype", None) or placement.pop("dtype", None)
    placement["dtype"] = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    placement["device_map"] = device_map if device == torch.device("cuda") else {"": device}
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


def load_weights(base: str, checkpoint: Checkpoint, config, placement: dict):
    """Our class with the weights in `base`. Missing and unexpected ones are an error that names them."""
    mapping = HF_KEYS if checkpoint.kind == "hf" else None
    model, info = CLASSES[config.model_type].from_pretrained(
        base, config=config, key_mapping=mapping, output_loading_info=True, **placement
    )
    later = ("model.mm_projector.", "model.image_newline") if checkpoint.kind in ("projector", "lora") else ()
    missing = [key for key in info["missing_keys"] if not key.startswith(later)] if later else info["missing_keys"]
    ignored = () if owns_tower(config) else (TOWER_KEYS,)  # as upstream: these come from mm_vision_tower
    unexpected = [k for k in info["unexpected_keys"] if not k.startswith(ignored) and "rotary_emb.inv_freq" not in k]
    refuse(missing, "missing from", base)
    refuse(unexpected, "not expected in", base)
    return model


def add_projector(model, checkpoint: Checkpoint) -> None:
    """Fill in `mm_projector.bin`: keys `model.mm_projector.*`, and `model.image_newline` where the config has one."""
    put(model, load_tensors(checkpoint.path, PROJECTOR), checkpoint.path)


def add_lora(model, checkpoint: Checkpoint):
    """Merge LoRA weights into the language model and fill in what was trained beside them. Returns the merged model."""
    from peft import PeftModel  # only LoRA needs it

    trained = {unwrap(key): value for key, value in load_tensors(checkpoint.path, NON_LORA).items()}
    vocabulary = trained.get("model.embed_tokens.weight")
    if vocabulary is not None and len(vocabulary) != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(vocabulary))
    put(model, trained, checkpoint.path)
    return PeftModel.from_pretrained(model, checkpoint.path).merge_and_unload()


def unwrap(key: str) -> str:
    """peft's `base_model.model.model.x` -> `model.x`."""
    return re.sub(r"^(?:base_model\.)?(?:model\.)?(?=(?:model|lm_head)\.)", "", key)


def put(model, tensors: dict[str, Tensor], path: str) -> None:
    """Copy tensors into a model by name; a name that the model lacks, or that the projector needs and the file lacks,
    is an error."""
    own = dict(model.named_parameters())
    refuse([key for key in tensors if key not in own], "not expected in", path)
    needed = ("model.mm_projector.", "model.image_newline")
    refuse([key for key in own if key.startswith(needed) and key not in tensors], "missing from", path)
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{key} in {path} has shape {tuple(value.shape)}, but the model built from config.json has "
                f"{tuple(own[key].shape)}: this base model and this checkpoint do not belong together."
            )
        own[key].data.copy_(value)


def refuse(keys: list[str], fault: str, path: str) -> None:
    if keys:
        some = ", ".join(sorted(keys)[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        raise ValueError(
            f"{len(keys)} weights are {fault} {path}: {some}. Its config.json does not describe these weights: check "
            f"that the download is complete, and mm_projector_type, mm_vision_tower and unfreeze_mm_vision_tower."
        )


def add_image_tokens(model, tokenizer) -> None:
    """Add the tokens that the config says the model was trained with, and rows for them if there are none."""
    config = model.config
    if getattr(config, "mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if getattr(config, "mm_use_im_start_end", False):
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def context_length(config) -> int:
    """Tokens that upstream lets a prompt and its answer have together."""
    return getattr(config, "max_sequence_length", None) or 2048
