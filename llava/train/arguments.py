"""Declare how a training run is described: LLaVA's flags, and those of VisionZip."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

import torch
import transformers
from transformers.integrations import is_tensorboard_available
from transformers.training_args import ParallelMode

from llava.conversation import conv_templates
from llava.inference.budget import budget_of
from llava.train.coherence import find_deepspeed, require_in_range, require_reporters
from visionzip_patch import VisionZipConfig
from visionzip_patch.selectors import SELECTORS


def option(default, help: str) -> Any:
    """Declare a field of a dataclass with its text for --help."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """Flags on the model, and on which part of it is trained."""

    _argument_group_name = "model and VisionZip"

    model_name_or_path: str | None = option(None, "model to train: folder or hub id of LLaVA or of a language model")
    version: str | None = option(
        None, "prompt template, of llava.conversation; plain is for captions (default: the checkpoint's own)"
    )
    tune_mm_mlp_adapter: bool = option(False, "train the projector alone")
    freeze_backbone: bool = option(False, "keep the language model as it is; train the projector")
    pretrain_mm_mlp_adapter: str | None = option(None, "mm_projector.bin to begin with (default: the checkpoint's own)")
    dominant: int | None = option(
        None, "VisionZip: tokens kept of each crop, CLS included (default: what the checkpoint carries)"
    )
    contextual: int | None = option(None, "VisionZip: tokens merged from the rest of each crop; 0 drops the rest")
    tokens_per_image: int | None = option(None, "VisionZip, instead of these two: tokens over all crops of an image")
    merge: Literal["sum", "mean"] | None = option(
        None, "VisionZip: as the published code (sum) or the paper's text (mean) (default: sum)"
    )
    selector: Literal[tuple(SELECTORS)] | None = option(None, "VisionZip: what is kept (default: visionzip)")
    selector_seed: int | None = option(None, "VisionZip: of a selector that draws, random (default: 0)")
    vision_tower: str | None = option(
        None, "CLIP or SigLIP, folder or hub id (default: the checkpoint's own; a language model needs one)"
    )
    mm_projector_type: str | None = option(
        None, "for a language model: linear, mlpNx_gelu with N layers, identity (default: mlp2x_gelu)"
    )
    mm_vision_select_layer: int = option(
        -2, "for a language model: tower layer that is read (LLaVA's scripts pass -2, its own is -1)"
    )
    mm_vision_select_feature: Literal["patch", "cls_patch"] = option(
        "patch", "for a language model: what is read of that layer, without or with CLS"
    )
    mm_patch_merge_type: Literal["flat", "spatial", "spatial_unpad"] = option(
        "flat", "for a language model: how the crops of an image are laid together"
    )
    mm_use_im_start_end: bool = option(False, "for a language model: put <im_start> and <im_end> around each image")
    mm_use_im_patch_token: bool = option(
        False, "for a language model: add <im_patch> to its vocabulary (LLaVA's scripts pass False, its own is True)"
    )

    def __post_init__(self):
        if self.version is not None and self.version not in conv_templates:
            raise ValueError(f"--version {self.version} is unknown; choose one of {', '.join(conv_templates)}.")
        self.visionzip()  # raises an error if the budget is wrong

    def visionzip(self) -> VisionZipConfig | None:
        """Return the budget that was asked for, or None. Raises ValueError for half a budget, or two."""
        return budget_of(self, spell="--{}".format)


@dataclass
class DataArguments:
    """Flags on the data."""

    _argument_group_name = "data"

    data_path: str | None = option(None, "LLaVA's JSON of conversations")
    image_folder: str | None = option(None, "what the images in data_path are relative to (default: no sample has one)")
    data_fraction: float = option(
        1.0, "share of the samples to train on, over 0 and up to 1, drawn evenly from every source with --data_seed"
    )
    images_only: bool = option(
        False, "leave out samples without an image: where the projector alone is trained, they change nothing"
    )
    skip_bad_data: bool = option(False, "leave out, and count, samples that cannot be used, instead of refusing them")
    cache_features: str | None = option(
        None, "folder where the tower's tokens are kept for later epochs and runs (default: computed each time)"
    )
    image_aspect_ratio: Literal["square", "pad", "anyres"] | None = option(
        None,
        "how images become square: cropped, padded, cut into tiles (default: as the checkpoint says, else cropped)",
    )
    image_grid_pinpoints: str | None = option(
        None, "(width, height) of the grids for anyres, as '[[336, 672], [672, 336]]' (default: as the checkpoint says)"
    )
    lazy_preprocess: bool = option(False, "accepted for LLaVA's scripts: samples are always made when they are needed")
    is_multimodal: bool = option(False, "accepted for LLaVA's scripts: the data decides")

    def __post_init__(self):
        if not 0 < self.data_fraction <= 1:
            raise ValueError(f"--data_fraction {self.data_fraction}: give a share over 0 and up to 1; 0.1 is a tenth.")


def usual_reporters() -> list[str]:
    """Choose where curves go by default: to tensorboard where it is installed."""
    return ["tensorboard" if is_tensorboard_available() else "none"]


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Flags on the training itself: transformers' own, some with other defaults, and LLaVA's."""

    _argument_group_name = "training"

    output_dir: str | None = option(None, "folder for checkpoints and the result; a run that was stopped goes on there")
    overwrite_output_dir: bool = option(False, "start again, where an earlier run has left checkpoints or its result")
    optim: str = option("adamw_torch", "optimizer, by transformers' name")
    mm_projector_lr: float | None = option(None, "peak learning rate of the projector (default: learning_rate)")
    freeze_mm_mlp_adapter: bool = option(False, "keep the projector as it is")
    model_max_length: int = option(512, "longest sample, in tokens with those of its images; LLaVA-1.5 used 2048")
    group_by_modality_length: bool = option(
        False, "make batches of samples alike in length, with images or without, so that little is padding"
    )
    deepspeed: str | None = option(
        None, "DeepSpeed settings: a JSON file, looked for here and in the repository; none: train without (default)"
    )
    report_to: list[str] = field(
        default_factory=usual_reporters,
        metadata={"help": "where curves go: tensorboard where it is installed, wandb, none"},
    )
    bits: Literal[4, 8, 16] = option(16, "bits per weight of the language model; 4 and 8 need bitsandbytes")
    quant_type: Literal["nf4", "fp4"] = option("nf4", "number format of 4-bit weights")
    double_quant: bool = option(True, "quantize the scales of 4-bit weights too")
    lora_enable: bool = option(False, "LoRA: train low-rank additions to the language model, and the projector")
    lora_r: int = option(64, "LoRA: rank")
    lora_alpha: int = option(16, "LoRA: additions are scaled by lora_alpha / lora_r")
    lora_dropout: float = option(0.05, "LoRA: share of inputs that are dropped")
    lora_weight_path: str = option("", "LoRA: folder of an adapter to begin with (default: begin at zero)")
    lora_bias: Literal["none", "all", "lora_only"] = option("none", "LoRA: which biases are trained too")
    cache_dir: str | None = option(None, "folder for what comes from the hub (default: the hub's own)")
    attn_implementation: str | None = option(
        None, "attention of the language model, by transformers' name: flash_attention_2, eager ... (default: sdpa)"
    )
    remove_unused_columns: bool = option(False, "stays False: the collator picks what the model reads")
    logging_nan_inf_filter: bool = option(False, "stays False: a loss that is not a number has to be seen")

    def __post_init__(self):
        """Check what can be known before processes are connected, which transformers does here."""
        require_in_range(self)
        self.deepspeed = None if self.deepspeed in ("", "none") else find_deepspeed(self.deepspeed)
        if isinstance(self.report_to, str):  # from a program; transformers takes both
            self.report_to = [self.report_to]
        require_reporters(self.report_to)
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu:
            self.tf32 = None  # transformers refuses to train with what only speeds up GPUs
        for name in ("checkpointing", "checkpointing_kwargs"):  # later releases of transformers warn of the old name
            if getattr(self, f"activation_{name}", ...) is None:
                setattr(self, f"activation_{name}", getattr(self, f"gradient_{name}"))
        super().__post_init__()
        if self.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
            raise ValueError(
                f"One process was started, and there are {self.n_gpu} GPUs. Start one for each: torchrun "
                f"--nproc_per_node {self.n_gpu} -m llava.train.train ...; or choose one: CUDA_VISIBLE_DEVICES=0."
            )
        if self.zero_stage == 3 and self.bits < 16:
            raise ValueError(
                f"ZeRO-3 cannot split weights of {self.bits} bits. Take --deepspeed configs/deepspeed/zero2.json: so "
                f"small, the language model fits on each GPU."
            )

    @property
    def zero_stage(self) -> int | None:
        """The stage of ZeRO, also if `accelerate launch` chose it; None without DeepSpeed."""
        return self.deepspeed_plugin and self.deepspeed_plugin.zero_stage


KINDS = (ModelArguments, DataArguments, TrainingArguments)


def own_names(kind: type) -> list[str]:
    """List the flags of one of `KINDS`."""
    return [each.name for each in fields(kind) if each.init]


def known_names() -> dict[str, Any]:
    """Return the type of every option of a run, by name."""
    return {name: hint for kind in KINDS for name, hint in get_type_hints(kind).items() if name in own_names(kind)}
