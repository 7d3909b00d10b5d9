"""One benchmark run, from command-line options to scores: choose, check, answer, score, report."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from llava.eval.answers import AnswerFile, describe_settings, settings_of
from llava.eval.cli import choose_data, require_images
from llava.eval.data import Data
from llava.eval.generate import answer_and_merge
from llava.eval.questions import Question
from llava.eval.results import print_report, summarize
from llava.eval.scores import naming_files
from llava.eval.tasks import TASKS, Task
from llava.inference.budget import (
    asked_counts,
    budget_name,
    budget_of,
    carried_budget,
    choose_budget,
    most_crops,
    require_possible,
    set_budget,
)
from llava.inference.decoding import Decoding
from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
from llava.inference.loading import load, read_tokenizer
from llava.mm_utils import get_model_name_from_path
from llava.model.description import read_config
from llava.model.graphs import OFF
from llava.utils.cli import QUESTIONS_REFUSED, print_once, silence_logging
from llava.utils.distributed import process_group
from llava.utils.environment import describe_device, device_of, use_one_thread
from llava.utils.files import read_json, write_bytes, write_json
from llava.utils.processes import ALONE, Shard, current_shard
from visionzip_patch import VisionZipConfig


@dataclass(frozen=True)
class Run:
    """What is the same for all budgets of a run."""

    task: Task
    data: Data
    questions: list[Question]
    decoding: Decoding
    checkpoint: str
    loading: dict  # options of `load`, device included
    settings: dict  # of the answers, but for the budget
    model: dict  # by which the report finds it in the paper
    shard: Shard
    batch_size: int
    num_workers: int | None
    limit: int | None  # only so many questions of the benchmark
    overwrite: bool
    restart: bool  # begin again with what an earlier run with the same settings has left, but overwrite nothing else


class Variant(NamedTuple):
    """The model at one budget, and its answers."""

    budget: VisionZipConfig | None  # None: all tokens
    answers: AnswerFile


def run_benchmark(args: argparse.Namespace) -> int:
    """Do what `llava.eval.run` was asked for; returns the exit status."""
    checkpoint = args.checkpoint or str(playground() / EMBEDDED_CHECKPOINT)
    if args.checkpoint is None:
        use_one_thread()
    data = choose_data(args, TASKS[args.task])  # before the checkpoint, which may have to be fetched
    config, tower = read_config(checkpoint, args.model_base)
    budgets = choose_budgets(args, checkpoint, config, tower)
    run = prepare(args, checkpoint, data, config, tower)
    paths = choose_paths(args, checkpoint, budgets)
    with process_group(run.shard):
        variants = [open_variant(run, budget, path) for budget, path in zip(budgets, paths, strict=True)]
        todo = [question for variant in variants for question in variant.answers.todo]
        if not args.skip_bad:
            ways_out = f"{run.data.how_to_fetch()}\nOr leave those questions out, and count them, with --skip-bad."
            require_images(todo, run.data.question_file, run.data.image_folder, ways_out)
        loaded = load_for(run, budgets) if todo else None
        results = [result for variant in variants if (result := evaluate(run, variant, loaded))]
    if run.shard.index > 0:
        return 0  # the first process speaks for all; a failure here would make torchrun stop it before it has scored
    print_report(results)
    refused = any(result["skipped"] for result in results) and not args.skip_bad
    unanswered = not all(result["answered"] for result in results)
    unmade = run.task.submission and not run.limit and not all(result["submission"] for result in results)
    if refused:
        print_once("\nFix what was skipped and run the same again, or add --skip-bad to accept this.")
    if run.task.elsewhere and not run.limit and not unmade:
        print_once(f"\n{run.task.elsewhere}")
    if None not in budgets:
        add = f"--budgets full,{args.budgets}" if args.budgets else "--compare-full"
        print_once(f"\nTo compare with all tokens in the same table: {add}.")
    is_useless = unanswered or (unmade and not run.task.headline)  # without a headline, the submission is all there is
    return QUESTIONS_REFUSED if refused or is_useless else 0


def choose_budgets(args: argparse.Namespace, checkpoint: str, config, tower) -> list[VisionZipConfig | None]:
    """The budgets to run, the main one last; None stands for all tokens."""
    if args.budgets is not None:
        budgets = listed_budgets(args)
        for budget in filter(None, budgets):
            require_possible(budget, config, tower)
        return budgets
    budget = choose_budget(args, config, tower, usual=args.checkpoint is None)
    if carried_budget(tower) and not asked_counts(args):
        print_once(f"No budget was given; {checkpoint} carries one, which is used: {budget}.")
    if budget is None and args.compare_full:
        raise ValueError("--compare-full needs a budget: add --dominant and --contextual, or --tokens-per-image.")
    return [None, budget] if args.compare_full or args.checkpoint is None else [budget]


def listed_budgets(args: argparse.Namespace) -> list[VisionZipConfig | None]:
    """Those of --budgets, in its order."""
    others = ("dominant", "contextual", "tokens_per_image", "answers_file", "compare_full")
    if given := [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]:
        raise ValueError(f"--budgets names all budgets of a run; leave {', '.join(given)} out.")
    budgets = []
    for text in args.budgets.split(","):
        counts = text.strip().split("+")
        if text.strip() == "full":
            budgets.append(None)
        elif not all(count.isdecimal() for count in counts) or len(counts) > 2:
            raise ValueError(
                f"--budgets {args.budgets}: {text.strip()!r} is no budget. Write full, a number of tokens per image "
                f"like 192, or kept + merged tokens of a crop like 54+10, with commas between."
            )
        elif len(counts) == 1:
            budgets.append(VisionZipConfig(tokens_per_image=int(text)))
        else:
            budgets.append(VisionZipConfig(*map(int, counts)))
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"--budgets {args.budgets} names a budget twice.")
    return [budget and budget_of(args, budget) for budget in budgets]


def choose_paths(args: argparse.Namespace, checkpoint: str, budgets: list[VisionZipConfig | None]) -> list[Path]:
    """Where each budget's answers go; with --answers-file the full-token ones get a name beside it."""
    if args.answers_file and args.out:
        raise ValueError("--answers-file and --out both say where the answers go: give one or the other.")
    if args.answers_file:
        path = Path(args.answers_file)
        return [path.with_name(f"{path.stem}.full{path.suffix}"), path][-len(budgets) :]
    folder = Path(args.out or playground() / "results" / args.task / get_model_name_from_path(checkpoint))
    bits = "-8bit" * args.load_8bit + "-4bit" * args.load_4bit
    first = f"-first-{args.limit}" if args.limit else ""
    return [folder / f"{budget_name(budget)}{bits}{first}.jsonl" for budget in budgets]


def prepare(args: argparse.Namespace, checkpoint: str, data: Data, config, tower) -> Run:
    """Read and check everything that takes no model."""
    task, shard = TASKS[args.task], current_shard()
    questions = task.read(data.question_file, args.limit)
    require_annotations(task, data, questions, args.limit)
    decoding = Decoding(args.conv_mode, args.max_new_tokens or task.max_new_tokens)
    decoding = decoding.settled(config, read_tokenizer(checkpoint, args.model_base))
    return Run(
        task=task,
        data=data,
        questions=questions,
        decoding=decoding,
        checkpoint=checkpoint,
        loading=loading_of(args, shard),
        settings=describe_settings(
            checkpoint,
            args.model_base,
            tower.vision_tower_name,
            questions,
            data.image_folder,
            task=task.name,
            dtype=args.dtype or ("float16" if device_of(args.device, ALONE).startswith("cuda") else "float32"),
            quantization="8bit" if args.load_8bit else "4bit" if args.load_4bit else None,
            prompt=decoding.prompt("{question}" + task.prompt_suffix),
            max_new_tokens=decoding.max_new_tokens,
        ),
        model={
            "model_type": config.model_type,
            "hidden_size": config.hidden_size,
            "visual_tokens": most_crops(config, tower) * tower.num_patches,
        },
        shard=shard,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        limit=args.limit,
        overwrite=args.overwrite,
        restart=args.checkpoint is None,  # the embedded model answers in seconds: who runs it again wants to see that
    )


def loading_of(args: argparse.Namespace, shard: Shard) -> dict:
    """Options of `load`."""
    return {
        "model_base": args.model_base,
        "load_8bit": args.load_8bit,
        "load_4bit": args.load_4bit,
        "device": device_of(args.device, shard),
        "use_flash_attn": args.flash_attn,
        "fast": args.fast or (OFF if args.flash_attn else "static"),
        "dtype": getattr(torch, args.dtype) if args.dtype else None,
    }


def require_annotations(task: Task, data: Data, questions: list[Question], limit: int | None) -> None:
    """Score empty answers, or make a submission of them: an annotation that is broken, of something else, or of other
    questions shows before the work is done. Raises ValueError, which names the files."""
    use = task.metric or (task.submission.make if task.submission and not limit else None)
    if use is None:
        return
    rows = [{"question_id": q.question_id, "prompt": q.text, "text": ""} for q in questions]
    with silence_logging(), naming_files(task.name, *(data.texts()[1:] or data.texts())):
        try:
            use(data, rows)
        except ValueError as error:
            raise ValueError(
                f"The questions of {data.question_file} do not go with {data.annotation_file}: {error}"
            ) from error


def open_variant(run: Run, budget: VisionZipConfig | None, path: Path) -> Variant:
    settings = {**run.settings, "visionzip": budget.to_dict() if budget else None}
    name = get_model_name_from_path(run.checkpoint)
    overwrite = run.overwrite
    if run.restart and not overwrite and run.shard.index == 0:  # the first process overwrites for all
        overwrite = settings_of(path) == settings
    answers = AnswerFile(path, run.questions, settings, shard=run.shard, model_id=name, overwrite=overwrite)
    if answers.resumed:
        print_once(f"{path}: {answers.resumed} of {len(run.questions)} questions are answered already.")
    return Variant(budget, answers)


def load_for(run: Run, budgets: list[VisionZipConfig | None]) -> tuple:
    """(tokenizer, model, image processor), for which every budget is possible."""
    loaded = load(run.checkpoint, **run.loading)
    for budget in budgets:
        set_budget(loaded[1], budget)
    return loaded


def evaluate(run: Run, variant: Variant, loaded: tuple | None) -> dict | None:
    """Answer, merge, score and save one variant; None in all processes but the first."""
    answers, is_timed = variant.answers, variant.answers.time.exists()
    if answers.todo:
        set_budget(loaded[1], variant.budget)
    holds_all = answer_and_merge(
        answers,
        loaded,
        run.data.image_folder,
        decoding=run.decoding,
        prompt_suffix=run.task.prompt_suffix,
        batch_size=run.batch_size,
        num_workers=run.num_workers,
        progress=budget_name(variant.budget) if run.shard.index == 0 else None,
    )
    if not holds_all:
        return None
    asked = len(run.questions) - answers.resumed
    spent = answers.spent()
    timing = {
        "seconds": round(spent.seconds, 2),  # over all starts
        "questions": len(run.questions) - spent.untimed,
        "batch_size": run.batch_size,
        "device": describe_device(run.loading["device"]),
        "processes": run.shard.count,
        "flash_attn": run.loading["use_flash_attn"],
    }
    result = summarize(run.task, run.data, variant.budget, answers, timing if asked or is_timed else None)
    result |= {"limit": run.limit, "model": run.model, "submission": write_submission(run, answers)}
    result |= known_before(answers.result, result)
    write_json(answers.result, result)
    return result


def write_submission(run: Run, answers: AnswerFile) -> str | None:
    """Where the file for the benchmark's server or judge is; None if it takes none or wants more answers than these."""
    submission = run.task.submission
    if not submission:
        return None
    if run.limit or len(answers.rows) < len(run.questions):
        print_once(f"{answers.path}: no submission, which needs the answers to all questions.")
        return None
    path = answers.beside(f".submission{submission.suffix}")
    try:
        write_bytes(path, submission.make(run.data, [answers.rows[row] for row in sorted(answers.rows)]))
    except (ValueError, ImportError) as error:  # the answers are all there, and so are their scores
        print_once(f"{path.name} could not be written: {error}")
        return None
    return str(path)


def known_before(path: Path, result: dict) -> dict:
    """What an earlier run has noted that stays true: how these answers were made, and a judge's scores of them."""
    try:
        before = dict(read_json(path)) if path.exists() else {}
    except (TypeError, ValueError):
        print_once(f"{path} was damaged, and is written anew. If a judge had graded these answers, run that again.")
        return {}
    if before.get("answered") != result["answered"]:
        return {}
    names = ["scores", "judge"] * bool(before.get("judge")) + ["timing", "versions"] * (result["timing"] is None)
    return {name: before.get(name) for name in names}
