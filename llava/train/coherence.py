"""Check the options of a training run: their ranges, what excludes each other, and what has to be installed."""

import argparse
import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.deepspeed import is_deepspeed_available

from llava.model.values import Kind
from llava.train.recipe import find_file
from llava.utils.files import read_json

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


def require_coherence(asked: argparse.Namespace) -> None:
    """Raise ValueError if something necessary is missing, or options of different groups exclude each other."""
    if missing := [name for name in ("model_name_or_path", "data_path", "output_dir") if not getattr(asked, name)]:
        raise ValueError(f"A run needs --{', --'.join(missing)}: on the command line, or in a --recipe.")
    if asked.tune_mm_mlp_adapter and asked.lora_enable:
        raise ValueError(
            "--tune_mm_mlp_adapter trains the projector alone, --lora_enable the language model too: give one of them."
        )
    if asked.freeze_mm_mlp_adapter and (asked.tune_mm_mlp_adapter or asked.freeze_backbone):
        other = "tune_mm_mlp_adapter" if asked.tune_mm_mlp_adapter else "freeze_backbone"
        raise ValueError(f"--{other} trains the projector, --freeze_mm_mlp_adapter forbids it: drop one.")
    if asked.bits < 16 and not (asked.lora_enable or asked.tune_mm_mlp_adapter or asked.freeze_backbone):
        raise ValueError(
            f"Weights of {asked.bits} bits cannot be trained: add --lora_enable True, or train the projector "
            f"alone with --tune_mm_mlp_adapter True."
        )


def find_deepspeed(name: str | None) -> str | None:
    """Find the file of DeepSpeed settings, and check that it can be used before processes are connected.

    Raises:
        ValueError: no such file, no JSON object, or no launcher.
        ImportError: DeepSpeed is not installed.
    """
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
    """Raise ValueError, which names the option, for a number that no run can have."""
    for name, kind in RANGES.items():
        value = getattr(arguments, name)
        if value is not None and not kind.fits(value):
            raise ValueError(f"--{name} {value}: give {kind.expected}.")


def require_reporters(asked: Sequence[str]) -> None:
    """Raise ImportError for a reporter that is not installed; transformers would only after the model is loaded."""
    available = get_available_reporting_integrations()
    if missing := sorted(set(asked) - {*available, "all", "none"}):
        raise ImportError(
            f"--report_to {' '.join(missing)} is not installed. Choose of {', '.join([*available, 'none'])}, or "
            f"pip install {' '.join(missing)}."
        )
