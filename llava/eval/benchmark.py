"""One benchmark run, from command-line options to scores: choose, check, answer, score, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from llava.eval.answers import AnswerFile, describe_settings, settings_of
from llava.eval.data_options import choose_data, require_images
from llava.eval.generate import answer_and_merge
from llava.eval.options import EvalOptions, choose_budgets, choose_paths
from llava.eval.questions import Question
from llava.eval.results import print_report, summarize
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Data, Task, naming_files
from llava.inference.budget import budget_name, most_crops, set_budget
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
class EvalRun:
    """What all budgets of a run share."""

    options: EvalOptions
    task: Task
    data: Data
    questions: list[Question]
    decoding: Decoding
    checkpoint: str
    loading: dict  # options of `load`, device included
    settings: dict  # of the answers, but for the budget
    model: dict  # by which the report finds it in the paper
    shard: Shard

    @property
    def restarts(self) -> bool:
        """Tell whether to begin again where an earlier run with the same settings has left answers.

        The embedded model answers in seconds: who runs it again wants to see that.
        """
        return self.options.checkpoint is None

    def how_to_fetch(self) -> str:
        """Say how to get the benchmark's files."""
        return self.task.how_to_fetch(embedded=self.options.checkpoint is None)


class BudgetAnswers(NamedTuple):
    """The model at one budget, and its answers."""

    budget: VisionZipConfig | None  # None: all tokens
    answers: AnswerFile


def run_benchmark(options: EvalOptions) -> int:
    """Do what `llava.eval.run` was asked for; returns the exit status."""
    checkpoint = options.checkpoint or str(playground() / EMBEDDED_CHECKPOINT)
    if options.checkpoint is None:
        use_one_thread()
    data = choose_data(options, TASKS[options.task])  # before the checkpoint, which may have to be fetched
    config, tower = read_config(checkpoint, options.model_base)
    budgets = choose_budgets(options, checkpoint, config, tower)
    run = prepare(options, checkpoint, data, config, tower)
    paths = choose_paths(options, checkpoint, budgets)
    with process_group(run.shard):
        pairs = [open_answers(run, budget, path) for budget, path in zip(budgets, paths, strict=True)]
        todo = [question for pair in pairs for question in pair.answers.todo]
        if not options.skip_bad:
            ways_out = f"{run.how_to_fetch()}\nOr leave those questions out, and count them, with --skip-bad."
            require_images(todo, run.data.question_file, run.data.image_folder, ways_out)
        loaded = load_for(run, budgets) if todo else None
        results = [result for pair in pairs if (result := evaluate(run, pair, loaded))]
    if run.shard.index > 0:
        return 0  # the first process speaks for all; a failure here would make torchrun stop it before it has scored
    print_report(results)
    status = status_of(run, results)
    if None not in budgets:
        add = f"--budgets full,{options.budgets}" if options.budgets else "--compare-full"
        print_once(f"\nTo compare with all tokens in the same table: {add}.")
    return status


def status_of(run: EvalRun, results: list[dict]) -> int:
    """Report what is missing from the results and who else scores them; returns the exit status."""
    refused = any(result["skipped"] for result in results) and not run.options.skip_bad
    unanswered = not all(result["answered"] for result in results)
    whole = not run.options.limit
    unmade = run.task.submission and whole and not all(result["submission"] for result in results)
    if refused:
        print_once("\nFix what was skipped and run the same again, or add --skip-bad to accept this.")
    if run.task.elsewhere and whole and not unmade:
        print_once(f"\n{run.task.elsewhere}")
    is_useless = unanswered or (unmade and not run.task.headline)  # without a headline, the submission is all there is
    return QUESTIONS_REFUSED if refused or is_useless else 0


def prepare(options: EvalOptions, checkpoint: str, data: Data, config, tower) -> EvalRun:
    """Read and check everything that takes no model."""
    task, shard = TASKS[options.task], current_shard()
    questions = task.read(data.question_file, options.limit)
    require_annotations(task, data, questions, options.limit)
    decoding = Decoding(options.conv_mode, options.max_new_tokens or task.max_new_tokens)
    decoding = decoding.settled(config, read_tokenizer(checkpoint, options.model_base))
    is_on_gpu = device_of(options.device, ALONE).startswith("cuda")
    return EvalRun(
        options=options,
        task=task,
        data=data,
        questions=questions,
        decoding=decoding,
        checkpoint=checkpoint,
        loading=loading_of(options, shard),
        settings=describe_settings(
            checkpoint,
            options.model_base,
            tower.vision_tower_name,
            questions,
            data.image_folder,
            task=task.name,
            dtype=options.dtype or ("float16" if is_on_gpu else "float32"),
            quantization="8bit" if options.load_8bit else "4bit" if options.load_4bit else None,
            prompt=decoding.prompt("{question}" + task.prompt_suffix),
            max_new_tokens=decoding.max_new_tokens,
        ),
        model={
            "model_type": config.model_type,
            "hidden_size": config.hidden_size,
            "visual_tokens": most_crops(config, tower) * tower.num_patches,
        },
        shard=shard,
    )


def loading_of(options: EvalOptions, shard: Shard) -> dict:
    """Make the options of `load`."""
    return {
        "model_base": options.model_base,
        "load_8bit": options.load_8bit,
        "load_4bit": options.load_4bit,
        "device": device_of(options.device, shard),
        "use_flash_attn": options.flash_attn,
        "fast": options.fast or (OFF if options.flash_attn else "static"),
        "dtype": getattr(torch, options.dtype) if options.dtype else None,
    }


def require_annotations(task: Task, data: Data, questions: list[Question], limit: int | None) -> None:
    """Score empty answers, or make a submission of them, so that wrong annotations show before the work is done.

    Raises:
        ValueError: the annotations are broken, of something else, or of other questions; the files are named.
    """
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


def open_answers(run: EvalRun, budget: VisionZipConfig | None, path: Path) -> BudgetAnswers:
    """Open the answers of one budget, and report what is answered already."""
    settings = {**run.settings, "visionzip": budget.to_dict() if budget else None}
    name = get_model_name_from_path(run.checkpoint)
    overwrite = run.options.overwrite
    if run.restarts and not overwrite and run.shard.index == 0:  # the first process overwrites for all
        overwrite = settings_of(path) == settings
    answers = AnswerFile(path, run.questions, settings, shard=run.shard, model_id=name, overwrite=overwrite)
    if answers.resumed:
        print_once(f"{path}: {answers.resumed} of {len(run.questions)} questions are answered already.")
    return BudgetAnswers(budget, answers)


def load_for(run: EvalRun, budgets: list[VisionZipConfig | None]) -> tuple:
    """Load tokenizer, model and image processor, for which every budget is possible."""
    loaded = load(run.checkpoint, **run.loading)
    for budget in budgets:
        set_budget(loaded[1], budget)
    return loaded


def evaluate(run: EvalRun, pair: BudgetAnswers, loaded: tuple | None) -> dict | None:
    """Answer, merge, score and save at one budget; None in all processes but the first."""
    answers, is_timed = pair.answers, pair.answers.time.exists()
    if answers.todo:
        set_budget(loaded[1], pair.budget)
    holds_all = answer_and_merge(
        answers,
        loaded,
        run.data.image_folder,
        decoding=run.decoding,
        prompt_suffix=run.task.prompt_suffix,
        batch_size=run.options.batch_size,
        num_workers=run.options.num_workers,
        progress=budget_name(pair.budget) if run.shard.index == 0 else None,
    )
    if not holds_all:
        return None
    asked = len(run.questions) - answers.resumed
    spent = answers.spent()
    timing = {
        "seconds": round(spent.seconds, 2),  # over all starts
        "questions": len(run.questions) - spent.untimed,
        "batch_size": run.options.batch_size,
        "device": describe_device(run.loading["device"]),
        "processes": run.shard.count,
        "flash_attn": run.loading["use_flash_attn"],
    }
    result = summarize(run.task, run.data, pair.budget, answers, timing if asked or is_timed else None)
    result |= {"limit": run.options.limit, "model": run.model, "submission": write_submission(run, answers)}
    result |= known_before(answers.result, result)
    write_json(answers.result, result)
    return result


def write_submission(run: EvalRun, answers: AnswerFile) -> str | None:
    """Write the file for the benchmark's server or judge; None if it takes none or wants more answers than these."""
    submission = run.task.submission
    if not submission:
        return None
    if run.options.limit or len(answers.rows) < len(run.questions):
        print_once(f"{answers.path}: no submission, which needs the answers to all questions.")
        return None
    path = answers.sibling(f".submission{submission.suffix}")
    try:
        write_bytes(path, submission.make(run.data, [answers.rows[row] for row in sorted(answers.rows)]))
    except (ValueError, ImportError) as error:  # the answers are all there, and so are their scores
        print_once(f"{path.name} could not be written: {error}")
        return None
    return str(path)


def known_before(path: Path, result: dict) -> dict:
    """Keep what an earlier run has noted that stays true: how these answers were made, and a judge's scores."""
    try:
        before = dict(read_json(path)) if path.exists() else {}
    except (TypeError, ValueError):
        print_once(f"{path} was damaged, and is written anew. If a judge had graded these answers, run that again.")
        return {}
    if before.get("answered") != result["answered"]:
        return {}
    names = ["scores", "judge"] * bool(before.get("judge")) + ["timing", "versions"] * (result["timing"] is None)
    return {name: before.get(name) for name in names}
