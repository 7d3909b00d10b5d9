"""Load the model of a run, and unfreeze the part that it trains."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava.conversation import SeparatorStyle, choose_template, conv_templates
from llava.model.builder import PROJECTOR_KEYS, load_weights, source_of
from llava.model.checkpoint import CONTENTS, Checkpoint
from llava.model.description import make_config
from llava.model.finite import require_finite_weights
from llava.model.multimodal_encoder.builder import vision_config
from llava.model.placement import NEVER_QUANTIZED
from llava.model.tokenizer import load_tokenizer
from llava.model.vocabulary import add_image_tokens, require_rows
from llava.model.weights import load_projector, refuse
from llava.train.run import Run
from llava.train.saving import load_adapter
from llava.train.sharding import gathered


def load(run: Run) -> tuple[Any, Any, Any]:
    """Load (tokenizer, model, image processor), everything frozen.

    `--model_name_or_path` is a whole LLaVA checkpoint, whose config then holds, or a language model, which gets the
    tower and the projector that the run describes.

    Raises:
        ValueError: no checkpoint there, one that cannot be trained, or a projector that does not fit.
    """
    path = run.base
    if run.training.zero_stage == 3:  # which cuts weights up while they are read: the processes have to know each other
        from deepspeed import init_distributed

        init_distributed("gloo" if run.training.use_cpu else None, verbose=False)
    checkpoint = Checkpoint.inspect(path, cache_dir=run.training.cache_dir)
    if checkpoint.kind in ("projector", "lora"):
        raise ValueError(
            f"--model_name_or_path {path} holds {CONTENTS[checkpoint.kind]}. Give the model it belongs to, and go on "
            f"from a projector with --pretrain_mm_mlp_adapter {path}/mm_projector.bin."
        )
    checkpoint = replace(checkpoint, config={**checkpoint.config, **vision_settings(run, checkpoint)})
    config = make_config(checkpoint, checkpoint, run.visionzip())
    if not config.mm_vision_tower:
        raise ValueError(f"{path} sees no images, and no --vision_tower was given.")
    config.tokenizer_model_max_length = run.training.model_max_length
    config.tokenizer_padding_side = "right"

    model: Any
    model, absent = load_weights(checkpoint, config, placement(run))
    is_new = checkpoint.kind == "text"  # a language model has no projector: it starts with random weights
    refuse({key for key in absent if not (is_new and key.startswith(PROJECTOR_KEYS))}, "missing from", path)
    if file := run.model.pretrain_mm_mlp_adapter:
        with gathered(model.get_model().mm_projector.parameters(), write=True):
            load_projector(model, file)
    tokenizer = load_tokenizer(path, model_max_length=run.training.model_max_length, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    require_rows(model, tokenizer)
    add_image_tokens(model, tokenizer)
    template = choose_template(run.model.version, config, tokenizer, flag="--version")
    if conv_templates[template].sep_style is not SeparatorStyle.PLAIN:  # which nothing can be asked with
        model.config.conv_mode = template  # saved, so that the result is asked as it was trained
    require_finite_weights(model.named_parameters(), lambda name: source_of(name, model, checkpoint))
    model.requires_grad_(False)
    model.name_or_path = config.name_or_path = str(Path(path).resolve()) if Path(path).is_dir() else path
    return tokenizer, model, model.get_vision_tower().image_processor


def vision_settings(run: Run, checkpoint: Checkpoint) -> dict:
    """Return what the run adds to a checkpoint's config.json. Raises ValueError if the tower is missing or unfit."""
    asked, data = run.model, run.data
    settings = {
        "image_aspect_ratio": data.image_aspect_ratio,
        "image_grid_pinpoints": data.image_grid_pinpoints,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    tower = asked.vision_tower
    if checkpoint.kind != "text":
        if tower and Path(tower).name != Path(str(checkpoint.config.get("mm_vision_tower"))).name:
            raise ValueError(
                f"{checkpoint.path} was trained with the tower {checkpoint.config.get('mm_vision_tower')}; "
                f"--vision_tower {tower} would not fit its projector. Leave the flag out."
            )
        return settings
    if not tower:
        raise ValueError(f"{checkpoint.path} is a language model without vision: add --vision_tower.")
    return {
        **settings,
        **vision_config(asked),
        "mm_use_im_start_end": asked.mm_use_im_start_end,
        "mm_use_im_patch_token": asked.mm_use_im_patch_token,
    }


def placement(run: Run) -> dict:
    """Return arguments of `from_pretrained`: dtype, device, quantization."""
    training, dtype = run.training, compute_dtype(run)
    options: dict[str, Any] = {"dtype": dtype}
    if training.attn_implementation:
        options["attn_implementation"] = training.attn_implementation
    if not is_deepspeed_zero3_enabled():  # ZeRO-3 places the parts itself
        options["device_map"] = {"": training.device}
    if training.bits < 16:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=training.bits == 8,
            load_in_4bit=training.bits == 4,
            bnb_4bit_quant_type=training.quant_type,
            bnb_4bit_use_double_quant=training.double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=NEVER_QUANTIZED,
        )
    return options


def compute_dtype(run: Run) -> torch.dtype:
    """Return the dtype that the run computes in."""
    if run.training.bf16:
        return torch.bfloat16
    return torch.float16 if run.training.fp16 else torch.float32


def choose_trainable(model, run: Run) -> nn.Module:
    """Unfreeze what the run trains; with LoRA, a wrapped model is returned.

    Raises:
        ValueError: nothing is left to train.
    """
    projector, training = model.get_model().mm_projector, run.training
    if training.lora_enable:
        model = add_lora(model, run)
        projector.requires_grad_(not training.freeze_mm_mlp_adapter)
    elif run.model.tune_mm_mlp_adapter:
        projector.requires_grad_(True)
    else:
        model.requires_grad_(not run.model.freeze_backbone)
        model.get_vision_tower().requires_grad_(False)
        projector.requires_grad_(not training.freeze_mm_mlp_adapter)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("Nothing is left to train: --freeze_backbone and --freeze_mm_mlp_adapter exclude each other.")
    if training.deepspeed is None:  # DeepSpeed keeps fp32 masters of its own; without it, what is trained is in fp32
        for parameter in trainable:
            parameter.data = parameter.data.float()
    return model


def trained_part(run: Run) -> str:
    """Name the part that a run trains: "lora", "projector" or "full"."""
    if run.training.lora_enable:
        return "lora"
    return "projector" if run.model.tune_mm_mlp_adapter else "full"


def add_lora(model, run: Run) -> nn.Module:
    """Add LoRA to every linear layer of the language model but its head."""
    from peft import LoraConfig, get_peft_model

    training = run.training
    config = LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        bias=training.lora_bias,
        target_modules=lora_targets(model),
        exclude_modules=r".*\b(vision_tower|mm_projector|lm_head)\b.*",  # the tower's layers bear the same names
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    if training.lora_weight_path:
        load_adapter(wrapped, training.lora_weight_path)
    return wrapped


def lora_targets(model: nn.Module) -> list[str]:
    """List the last parts of the names of the language model's linear layers."""
    skipped = re.compile(r"\b(vision_tower|mm_projector|lm_head)\b")
    found = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted({name.rpartition(".")[2] for name in found if not skipped.search(name)})
