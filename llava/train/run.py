"""Describe a training run by a command line, and by recipes, which are YAML files of flags.

    run = parse(["--recipe", "configs/finetune_projector.yaml", "--output_dir", "tuned", "--learning_rate", "1e-4"])

A recipe is put in front of the command line as if it had been typed there: both take the same names and values, and
what is typed wins.
"""

import argparse
import copy
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from inspect import get_annotations
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers.hf_argparser import HfArgumentParser, string_to_bool

from llava.inference.budget import asked_counts
from llava.train.arguments import KINDS, DataArguments, ModelArguments, TrainingArguments, known_names, own_names
from llava.train.coherence import require_coherence
from llava.train.recipe import find_file, read_recipe, similar, to_options
from llava.utils.cli import add_verbose, program
from visionzip_patch import VisionZipConfig

# What decides the result of a run, apart from the model's arguments.
DECISIVE_DATA = ("data_fraction", "images_only", "skip_bad_data", "image_aspect_ratio", "image_grid_pinpoints")
DECISIVE_TRAINING = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
    *("optim", "learning_rate", "mm_projector_lr", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor"),
    *("neftune_noise_alpha", "seed", "data_seed", "group_by_modality_length", "model_max_length"),
    *("freeze_mm_mlp_adapter", "bf16", "fp16", "bits", "quant_type", "double_quant"),
    *("lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_weight_path"),
)


class Run(NamedTuple):
    """A training run as it was asked for."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    recipe: Path | None
    verbose: bool

    @property
    def base(self) -> str:
        """The model to train: a folder or hub id."""
        return necessary(self.model.model_name_or_path)

    @property
    def records(self) -> str:
        """The file of conversations."""
        return necessary(self.data.data_path)

    @property
    def output(self) -> Path:
        """The folder for checkpoints and the result."""
        return Path(necessary(self.training.output_dir))

    def visionzip(self) -> VisionZipConfig | None:
        """Return the budget that was asked for; None leaves the one that the checkpoint carries, if any."""
        return self.model.visionzip()

    def settings(self) -> dict:
        """Collect what decides the result, as JSON has it: a run may continue where all of these are the same."""
        data, training = asdict(self.data), self.training.to_dict()
        return {
            **asdict(self.model),
            "data_path": str(Path(self.records).resolve()),
            **{name: data[name] for name in DECISIVE_DATA},
            **{name: training[name] for name in DECISIVE_TRAINING},
            "world_size": self.training.world_size,
            "zero_stage": self.training.zero_stage,
        }


def necessary(value: str | None) -> str:
    """Return the value of an option that `require_coherence` asks for."""
    assert value is not None, "a run that was parsed has one"
    return value


def parse(argv: Sequence[str] | None = None) -> Run:
    """Parse a command line (None: this process's), and check it as far as possible without data and model.

    Raises:
        ValueError: an unknown name, a value of the wrong type, or options that exclude each other.
        ImportError: something was asked for that is not installed.
    """
    parser, known, argv = make_parser(), known_names(), sys.argv[1:] if argv is None else argv
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(unknown_option(unknown[0], known))
    recipe = find_file(typed.recipe) if typed.recipe else None
    values = read_recipe(recipe, parser, known) if recipe else {}
    if typed.tokens_per_image is not None:  # a budget on the command line replaces the recipe's, of either kind
        values = {name: value for name, value in values.items() if name not in ("dominant", "contextual")}
    elif asked_counts(typed, "--{}".format):
        values.pop("tokens_per_image", None)
    asked = parser.parse_args([*to_options(values, known), *argv])
    require_coherence(asked)

    def values_of(kind: type) -> dict:
        return {name: getattr(asked, name) for name in own_names(kind)}

    return Run(
        ModelArguments(**values_of(ModelArguments)),
        DataArguments(**values_of(DataArguments)),
        TrainingArguments(**values_of(TrainingArguments)),
        recipe,
        asked.verbose,
    )


class Parser(HfArgumentParser):
    """A parser that raises ValueError instead of ending the program."""

    def error(self, message: str):
        raise ValueError(message)


METAVARS = {int: "N", float: "X", str: "TEXT", string_to_bool: "BOOL"}


class EveryOption(argparse.ArgumentDefaultsHelpFormatter):
    """A formatter of --help: each option in one spelling, and no empty default."""

    def add_argument(self, action: argparse.Action) -> None:
        action = copy.copy(action)
        action.option_strings = action.option_strings[:1]
        action.metavar = action.metavar or METAVARS.get(action.type)
        if action.default in (None, ""):
            action.default = argparse.SUPPRESS
        super().add_argument(action)


class OwnOptions(EveryOption):
    """A formatter of --help that leaves out the options of transformers."""

    def add_argument(self, action: argparse.Action) -> None:
        if action.dest not in set(own_names(transformers.TrainingArguments)) - set(get_annotations(TrainingArguments)):
            super().add_argument(action)


class HelpAll(argparse.Action):
    """Print the options of transformers too, and end the program."""

    def __call__(self, parser, *args):
        parser.formatter_class = EveryOption
        parser.print_help()
        parser.exit()


def make_parser() -> Parser:
    """Make the parser of all options of a run."""
    parser = Parser(
        KINDS,
        prog=program("llava.train.train"),
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
    old: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--evaluation_strategy", dest="eval_strategy", **old)
    parser.add_argument("--warmup_ratio", dest="warmup_steps", type=warmup_share, **old)
    return parser


def warmup_share(text: str) -> float:
    """Read a share of all steps, from 0 to below 1: transformers would take more for a number of steps."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a share of all steps, from 0 to below 1; --warmup_steps takes steps")
    return value


def unknown_option(word: str, known: Iterable[str]) -> str:
    """Say that an option is unknown, and which one may have been meant."""
    if not word.startswith("-"):
        return f"{word!r} belongs to no option: each is written --name value."
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    return f"Unknown option {word.partition('=')[0]}.{similar(name, known, prefix='--')} --help-all lists them all."
