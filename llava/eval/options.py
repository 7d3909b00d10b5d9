"""What a run of a benchmark was asked for, and the budgets and files that follow from it."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from llava.inference.budget import asked_counts, budget_name, budget_of, carried_budget, choose_budget, require_possible
from llava.inference.embedded import playground
from llava.mm_utils import get_model_name_from_path
from llava.utils.cli import print_once
from visionzip_patch import VisionZipConfig


@dataclass(frozen=True)
class EvalOptions:
    """The options of `llava.eval.run`, a field each; its --help says what they mean. None: not given."""

    task: str
    checkpoint: str | None = None  # None: the embedded model and data
    model_base: str | None = None
    skip_bad: bool = False

    dominant: int | None = None
    contextual: int | None = None
    tokens_per_image: int | None = None
    merge: str | None = None
    selector: str | None = None
    selector_seed: int | None = None
    budgets: str | None = None
    compare_full: bool = False

    question_file: str | None = None
    image_folder: str | None = None
    annotation_file: str | None = None
    limit: int | None = None

    answers_file: str | None = None
    out: str | None = None
    overwrite: bool = False

    conv_mode: str | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    num_workers: int | None = None
    fast: str | None = None
    device: str = "auto"
    dtype: str | None = None
    load_8bit: bool = False
    load_4bit: bool = False
    flash_attn: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> "EvalOptions":
        """Take the options from those of a command line."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


def choose_budgets(options: EvalOptions, checkpoint: str, config, tower) -> list[VisionZipConfig | None]:
    """Choose the budgets to run, the main one last; None stands for all tokens.

    Args:
        options: of the run.
        checkpoint: folder or hub id.
        config: of the checkpoint.
        tower: its vision tower, without weights.

    Raises:
        ValueError: a budget that some image cannot be given, or options that exclude each other.
    """
    if options.budgets is not None:
        budgets = listed_budgets(options, options.budgets)
        for budget in filter(None, budgets):
            require_possible(budget, config, tower)
        return budgets
    budget = choose_budget(options, config, tower, usual=options.checkpoint is None)
    if carried_budget(tower) and not asked_counts(options):
        print_once(f"No budget was given; {checkpoint} carries one, which is used: {budget}.")
    if budget is None and options.compare_full:
        raise ValueError("--compare-full needs a budget: add --dominant and --contextual, or --tokens-per-image.")
    return [None, budget] if options.compare_full or options.checkpoint is None else [budget]


def listed_budgets(options: EvalOptions, listed: str) -> list[VisionZipConfig | None]:
    """Read the budgets that --budgets has `listed`, in its order; None stands for all tokens.

    Raises:
        ValueError: one of them is no budget or named twice, or another option names a budget too.
    """
    others = ("dominant", "contextual", "tokens_per_image", "answers_file", "compare_full")
    if given := [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]:
        raise ValueError(f"--budgets names all budgets of a run; leave {', '.join(given)} out.")
    budgets: list[VisionZipConfig | None] = []
    for text in listed.split(","):
        counts = text.strip().split("+")
        if text.strip() == "full":
            budgets.append(None)
        elif not all(count.isdecimal() for count in counts) or len(counts) > 2:
            raise ValueError(
                f"--budgets {listed}: {text.strip()!r} is no budget. Write full, a number of tokens per image "
                f"like 192, or kept + merged tokens of a crop like 54+10, with commas between."
            )
        elif len(counts) == 1:
            budgets.append(VisionZipConfig(tokens_per_image=int(text)))
        else:
            dominant, contextual = map(int, counts)
            budgets.append(VisionZipConfig(dominant, contextual))
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"--budgets {listed} names a budget twice.")
    return [budget and budget_of(options, budget) for budget in budgets]


def choose_paths(options: EvalOptions, checkpoint: str, budgets: list[VisionZipConfig | None]) -> list[Path]:
    """Choose where each budget's answers go; with --answers-file the full-token ones get a name next to it."""
    if options.answers_file and options.out:
        raise ValueError("--answers-file and --out both say where the answers go: give one or the other.")
    if options.answers_file:
        path = Path(options.answers_file)
        return [path.with_name(f"{path.stem}.full{path.suffix}"), path][-len(budgets) :]
    folder = Path(options.out or playground() / "results" / options.task / get_model_name_from_path(checkpoint))
    bits = "-8bit" * options.load_8bit + "-4bit" * options.load_4bit
    first = f"-first-{options.limit}" if options.limit else ""
    return [folder / f"{budget_name(budget)}{bits}{first}.jsonl" for budget in budgets]
