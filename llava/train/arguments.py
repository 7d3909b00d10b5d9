"""How a training run is described: LLaVA's flags, those of VisionZip, and recipes, which are YAML files of flags.

    run = parse(["--recipe", "configs/finetune_projector.yaml", "--output_dir", "tuned", "--learning_rate", "1e-4"])

A recipe is put in front of the command line as if it had been typed there: both take the same names and values, and
what is typed wins.
"""

import argparse
import copy
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import get_annotations
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
import transformers
import yaml
from transformers.hf_argparser import HfArgumentParser, string_to_bool
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available
from transformers.integrations.deepspeed import is_deepspeed_available
from transformers.training_args import ParallelMode

from llava.conversation import conv_templates
from llava.inference.budget import asked_counts, budget_of
from llava.model.values import Kind
from llava.utils.cli import add_verbose
from llava.utils.files import read_bytes, read_json
from visionzip_patch import VisionZipConfig
from visionzip_patch.selectors import SELECTORS

SOURCE_ROOT = Path(__file__).resolve().parents[2]

# What decides the result of a run, beside the model's arguments.
DECISIVE_DATA = ("data_fraction", "images_only", "skip_bad_data", "image_aspect_ratio", "image_grid_pinpoints")
DECISIVE_TRAINING = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
    *("optim", "learning_rate", "mm_projector_lr", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor"),
    *("neftune_noise_alpha", "seed", "data_seed", "group_by_modality_length", "model_max_length"),
    *("freeze_mm_mlp_adapter", "bf16", "fp16", "bits", "quant_type", "double_quant"),
    *("lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_weight_path"),
)


COUNT = Kind("a whole number of at least 1", lambda value: value >= 1)
ABOVE_0 = Kind("a number above 0", lambda value: 0 < value < math.inf)
FROM_0 = Kind("a number of at least 0", lambda value: 0 <= value < math.inf)
BELOW_1 = Kind("a share from 0 to below 1", lambda value: 0 <= value < 1)

# What numbers of a run can be; not a number passes no comparison. Those that are None are not set.
RANGES = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "model_max_length"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit", "lora_r", "lora_alpha"), COUNT),
    **dict.fromkeys(("num_train_epochs", "save_steps", "logging_steps", "eval_steps", "adam_epsilon"), ABOVE_0),
    **dict.fromkeys(("learning_rate", "mm_projector_lr", "weight_decay", "warmup_steps", "max_grad_norm"), FROM_0),
    **dict.fromkeys(("neftune_noise_alpha", "seed", "data_seed", "dataloader_num_workers"), FROM_0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "lora_dropout"), BELOW_1),
    "max_steps": Kind("at least 1, or -1 to go by --num_train_epochs", lambda value: value == -1 or value >= 1),
}


def option(default, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """Which model, and which part of it learns."""

    _argument_group_name = "model and VisionZip"

    model_name_or_path: str | None = option(None, "model to train: folder or hub id of LLaVA or of a language model")
    version: str | None = option(
        None, "prompt template, of llava.conversation; plain is for captions (default: the checkpoint's own)"
    )
    tune_mm_mlp_adapter: bool = option(False, "train the projector alone")
    freeze_backbone: bool = option(False, "keep the language model as it is; the projector learns")
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
        self.visionzip()  # raises now what is wrong with the budget

    def visionzip(self) -> VisionZipConfig | None:
        """The budget that was asked for; None asks for none. Raises ValueError for half a budget, or two."""
        return budget_of(self, spell="--{}".format)


@dataclass
class DataArguments:
    """What is learnt from."""

    _argument_group_name = "data"

    data_path: str | None = option(None, "LLaVA's JSON of conversations")
    image_folder: str | None = option(None, "what the images in data_path are relative to (default: no sample has one)")
    data_fraction: float = option(
        1.0, "share of the samples to train on, over 0 and up to 1, drawn evenly from every source with --data_seed"
    )
    images_only: bool = option(
        False, "leave out samples without an image: where the projector alone learns, they move nothing"
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
    is_multimodal: bool = option(False, "accepted for LLaVA's scripts: the data tells")

    def __post_init__(self):
        if not 0 < self.data_fraction <= 1:
            raise ValueError(f"--data_fraction {self.data_fraction}: give a share over 0 and up to 1; 0.1 is a tenth.")


def usual_reporters() -> list[str]:
    return ["tensorboard" if is_tensorboard_available() else "none"]


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """How it is learnt: transformers' own arguments, some with other defaults, and LLaVA's."""

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
    lora_bias: Literal["none", "all", "lora_only"] = option("none", "LoRA: which biases learn too")
    cache_dir: str | None = option(None, "folder for what comes from the hub (default: the hub's own)")
    attn_implementation: str | None = option(
        None, "attention of the language model, by transformers' name: flash_attention_2, eager ... (default: sdpa)"
    )
    remove_unused_columns: bool = option(False, "stays False: the collator picks what the model reads")
    logging_nan_inf_filter: bool = option(False, "stays False: a loss that is not a number has to be seen")

    def __post_init__(self):
        """Checks what can be known before processes are connected, which transformers does here."""
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
        """Stage of ZeRO, also if `accelerate launch` chose it; None without DeepSpeed."""
        return self.deepspeed_plugin and self.deepspeed_plugin.zero_stage


KINDS = (ModelArguments, DataArguments, TrainingArguments)


class Run(NamedTuple):
    """Everything that was asked for."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    recipe: Path | None
    verbose: bool

    def visionzip(self) -> VisionZipConfig | None:
        """The budget that was asked for; None leaves the one that the checkpoint carries, if any."""
        return self.model.visionzip()

    def settings(self) -> dict:
        """What decides the result, as JSON has it: a run may go on where all of these are the same."""
        data, training = asdict(self.data), self.training.to_dict()
        return {
            **asdict(self.model),
            "data_path": str(Path(self.data.data_path).resolve()),
            **{name: data[name] for name in DECISIVE_DATA},
            **{name: training[name] for name in DECISIVE_TRAINING},
            "world_size": self.training.world_size,
            "zero_stage": self.training.zero_stage,
        }


def parse(argv: Sequence[str] | None = None) -> Run:
    """The run that a command line describes (None: this process's), checked as far as goes without data and model.

    Raises:
        ValueError: an unknown name, a value of the wrong type, or options that exclude each other.
        ImportError: something was asked for that is not installed.
    """
    parser, argv = make_parser(), sys.argv[1:] if argv is None else argv
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(unknown_option(unknown[0]))
    recipe = find_file(typed.recipe) if typed.recipe else None
    values = read_recipe(recipe, parser) if recipe else {}
    if typed.tokens_per_image is not None:  # a budget on the command line replaces the recipe's, of either kind
        values = {name: value for name, value in values.items() if name not in ("dominant", "contextual")}
    elif asked_counts(typed, "--{}".format):
        values.pop("tokens_per_image", None)
    asked = parser.parse_args([*to_options(values), *argv])
    require_coherence(asked)
    arguments = (kind(**{name: getattr(asked, name) for name in own_names(kind)}) for kind in KINDS)
    return Run(*arguments, recipe=recipe, verbose=asked.verbose)


def require_coherence(asked: argparse.Namespace) -> None:
    """Raises ValueError where something necessary is missing, or options of different groups exclude each other."""
    if missing := [name for name in ("model_name_or_path", "data_path", "output_dir") if not getattr(asked, name)]:
        raise ValueError(f"A run needs --{', --'.join(missing)}: on the command line, or in a --recipe.")
    if asked.tune_mm_mlp_adapter and asked.lora_enable:
        raise ValueError(
            "--tune_mm_mlp_adapter trains the projector alone, --lora_enable the language model too: give one of them."
        )
    if asked.freeze_mm_mlp_adapter and (asked.tune_mm_mlp_adapter or asked.freeze_backbone):
        other = "tune_mm_mlp_adapter" if asked.tune_mm_mlp_adapter else "freeze_backbone"
        raise ValueError(f"--{other} leaves the projector to learn, --freeze_mm_mlp_adapter forbids it: drop one.")
    if asked.bits < 16 and not (asked.lora_enable or asked.tune_mm_mlp_adapter or asked.freeze_backbone):
        raise ValueError(
            f"Weights of {asked.bits} bits cannot learn themselves: add --lora_enable True, or train the projector "
            f"alone with --tune_mm_mlp_adapter True."
        )


def own_names(kind: type) -> list[str]:
    return [each.name for each in fields(kind) if each.init]


class Parser(HfArgumentParser):
    """Raises ValueError instead of ending the program."""

    def error(self, message: str):
        raise ValueError(message)


METAVARS = {int: "N", float: "X", str: "TEXT", string_to_bool: "BOOL"}


class EveryOption(argparse.ArgumentDefaultsHelpFormatter):
    """Each option in one spelling; a default that is nothing is told in words or not at all."""

    def add_argument(self, action: argparse.Action) -> None:
        action = copy.copy(action)
        action.option_strings = action.option_strings[:1]
        action.metavar = action.metavar or METAVARS.get(action.type)
        if action.default in (None, ""):
            action.default = argparse.SUPPRESS
        super().add_argument(action)


class OwnOptions(EveryOption):
    """Without what is transformers' alone."""

    def add_argument(self, action: argparse.Action) -> None:
        if action.dest not in set(own_names(transformers.TrainingArguments)) - set(get_annotations(TrainingArguments)):
            super().add_argument(action)


class HelpAll(argparse.Action):
    def __call__(self, parser, *args):
        parser.formatter_class = EveryOption
        parser.print_help()
        parser.exit()


def make_parser() -> Parser:
    parser = Parser(
        KINDS,
        prog="python -m llava.train.train",
        usage="%(prog)s [--recipe FILE] --model_name_or_path MODEL --data_path FILE --output_dir DIR [option ...]",
        description="Tune LLaVA with VisionZip. An interrupted run goes on with the same command.",
        epilog="--help-all lists also what transformers.TrainingArguments has: --learning_rate, --num_train_epochs, "
        "--per_device_train_batch_size, --gradient_accumulation_steps, --warmup_steps, --bf16, --save_steps ...",
        formatter_class=OwnOptions,
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action=HelpAll, nargs=0, help="list the options of transformers too")
    parser.add_argument("--recipe", metavar="FILE", help="YAML of options, looked for here and in the repository")
    add_verbose(parser)
    # What LLaVA's scripts pass and transformers has renamed.
    old = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--evaluation_strategy", dest="eval_strategy", **old)
    parser.add_argument("--warmup_ratio", dest="warmup_steps", type=warmup_share, **old)
    return parser


def warmup_share(text: str) -> float:
    """A number from 0 up to, but not, 1: transformers takes it as a share of all steps, and from 1 on as steps."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a share of all steps, from 0 to below 1; --warmup_steps takes steps")
    return value


def unknown_option(word: str) -> str:
    if not word.startswith("-"):
        return f"{word!r} belongs to no option: each is written --name value."
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    return f"Unknown option {word.partition('=')[0]}.{similar(name, prefix='--')} --help-all lists them all."


def similar(name: str, prefix: str = "") -> str:
    close = get_close_matches(name, known_names())
    return f" Did you mean {' or '.join(prefix + known for known in close)}?" if close else ""


def known_names() -> dict[str, Any]:
    """Every option of a run, and its type."""
    return {name: hint for kind in KINDS for name, hint in get_type_hints(kind).items() if name in own_names(kind)}


def read_recipe(path: Path, parser: Parser) -> dict:
    """The options in a YAML file, by name.

    Raises:
        ValueError: not YAML, an unknown key, or a value of another type than the option's; file and key are named.
    """
    try:
        values = yaml.safe_load(read_bytes(path)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of 'name: value', found {type(values).__name__}.")
    known = known_names()
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}.{similar(str(key))} --help-all lists them all.")
        union = get_args(known[key]) if get_origin(known[key]) in (Union, UnionType) else (known[key],)
        expected = {get_origin(kind) or kind for kind in union}
        if isinstance(value, bool | list | dict) and not {type(value), Literal} & expected:
            names = " or ".join(sorted(getattr(kind, "__name__", str(kind)) for kind in expected - {type(None)}))
            quotes = " A text that YAML takes for something else, as it does no, goes in quotes." * (str in expected)
            raise ValueError(f"{path}: {key}: {value!r}; expected {names}.{quotes}")
    try:
        parser.parse_args(to_options(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return values


def to_options(values: dict) -> list[str]:
    """A recipe as words of a command line; a key without a value is left out.

    YAML reads 2e-5 as a text, for want of a point: on a command line it is the same as 2.0e-5.
    """
    words = []
    for name, value in values.items():
        if isinstance(value, list) and get_origin(known_names()[name]) is list:
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, list | dict) else value}")
    return words


def find_file(name: str) -> Path:
    """A file whose name is relative to the current directory or, failing that, to the repository."""
    for path in (Path(name), SOURCE_ROOT / name):
        if path.is_file():
            return path
    shipped = sorted((SOURCE_ROOT / "configs").rglob(f"*{Path(name).suffix}"))
    names = ", ".join(str(path.relative_to(SOURCE_ROOT)) for path in shipped if path.is_file())
    raise ValueError(f"{name}: no such file, here or in {SOURCE_ROOT}, which has {names}.")


def find_deepspeed(name: str | None) -> str | None:
    """The DeepSpeed settings, which are read and thrown away: a broken file shows before processes are connected."""
    if name is None:
        return None
    path = find_file(name)
    if not isinstance(settings := read_json(path), dict):
        raise ValueError(f"{path}: expected a JSON object {{...}}, found {type(settings).__name__}.")
    if not is_deepspeed_available():
        raise ImportError(
            f"--deepspeed {name} needs DeepSpeed: pip install deepspeed. --deepspeed none trains without; on several "
            f"GPUs, each then holds the whole model."
        )
    if "RANK" not in os.environ and not find_spec("mpi4py"):
        raise ValueError(
            f"--deepspeed {name} needs a launcher, even for one process: torchrun --nproc_per_node 1 -m "
            f"llava.train.train ...; or train without: --deepspeed none."
        )
    return str(path)


def require_in_range(arguments: Any) -> None:
    """Raises ValueError, which names the option, for a number that no run can have."""
    for name, kind in RANGES.items():
        value = getattr(arguments, name)
        if value is not None and not kind.fits(value):
            raise ValueError(f"--{name} {value}: give {kind.expected}.")


def require_reporters(asked: Sequence[str]) -> None:
    """Raises ImportError for one that is not there; transformers would tell after the model is loaded."""
    available = get_available_reporting_integrations()
    if missing := sorted(set(asked) - {*available, "all", "none"}):
        raise ImportError(
            f"--report_to {' '.join(missing)} is not installed. Choose of {', '.join([*available, 'none'])}, or "
            f"pip install {' '.join(missing)}."
        )
