"""Run a benchmark: `python -m llava.eval.run textvqa [CHECKPOINT] [--dominant D --contextual C]`.

Without CHECKPOINT the embedded model answers the embedded questions, with all tokens and zipped, on any machine.
Started by torchrun, every process answers its part; the first one brings the parts together and scores.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
import transformers

from llava.eval.answers import ALONE, AnswerFile, Question, Shard, current_shard, read_questions
from llava.eval.files import fingerprint, read_json, write_json
from llava.eval.generate import Decoding, answer_questions, missing_images
from llava.eval.tasks import EMBEDDED_CHECKPOINT, TASKS, Data, Task, playground
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import Checkpoint
from visionzip_patch import VisionZipConfig, unzip, visionzip
from visionzip_patch.selection import MERGES

EMBEDDED_BUDGET = VisionZipConfig(dominant=6, contextual=1)  # a ninth of 64 tokens, as 64 of 576
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
QUESTIONS_REFUSED, BAD_REQUEST, INTERRUPTED = 1, 2, 130  # exit statuses


class Variant(NamedTuple):
    """The model at one budget, and its answers."""

    budget: VisionZipConfig | None  # None: all tokens
    answers: AnswerFile


class Stopped(Exception):
    """Ctrl-C; the text says what is kept."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return status_of(run, parse_arguments(argv))


def status_of(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """The exit status of a command; what the user can mend is told in words, without a traceback."""
    logging.basicConfig(format="%(message)s")
    try:
        return command(args)
    except Stopped as stopped:
        return end(stopped, INTERRUPTED)
    except KeyboardInterrupt:
        return end("Stopped before the first answer.", INTERRUPTED)
    except torch.OutOfMemoryError:
        return end(f"Out of memory at --batch-size {args.batch_size}. Run again with half of it; answers are kept.")
    except (ValueError, OSError) as error:  # OSError: a full disk, a hub that cannot be reached
        return end(error)


def run(args: argparse.Namespace) -> int:
    """Check what is cheap to check, answer what has no answer yet, score, report; returns the exit status."""
    task, shard = TASKS[args.task], current_shard()
    checkpoint = args.checkpoint or str(playground() / EMBEDDED_CHECKPOINT)
    budgets = choose_budgets(args, checkpoint)
    data = choose_data(args, task)
    questions = read_questions(data.question_file, args.limit)
    require_annotations(task, data, questions)
    decoding = Decoding(args.conv_mode, args.max_new_tokens or task.max_new_tokens)
    settings = describe_settings(args, task, checkpoint, data, questions, decoding)
    variants = []
    for budget in budgets:
        path = answers_path(args, checkpoint, budget, main=budget is budgets[-1])
        variants.append(open_variant(args, checkpoint, budget, path, questions, settings, shard))
    if not args.skip_bad:
        require_images(data, [question for variant in variants for question in variant.answers.todo])

    choose_threads(args)
    loaded = load(args, checkpoint, budgets, shard) if any(variant.answers.todo for variant in variants) else None
    results = [result for variant in variants if (result := evaluate(args, task, data, decoding, variant, loaded))]
    if shard.index > 0:
        return 0  # the first process speaks for all; a failure here would make torchrun stop it before it has merged
    print_report(results)
    if budgets == [budget for budget in budgets if budget]:
        tell("\nTo compare with all tokens in the same table, add --compare-full.")
    return QUESTIONS_REFUSED if any(result["skipped"] for result in results) and not args.skip_bad else 0


def choose_budgets(args: argparse.Namespace, checkpoint: str) -> list[VisionZipConfig | None]:
    """The budgets to run, the main one last; None stands for all tokens."""
    asked = asked_budget(args)
    carried = Checkpoint.inspect(checkpoint).config.get("visionzip")
    if asked is None and carried:
        asked = VisionZipConfig.from_dict(carried)
        asked = replace(asked, merge=args.merge or asked.merge)
        tell(f"No budget was given; {checkpoint} carries one, which is used: {asked}.")
    if args.checkpoint is None:
        return [None, asked or replace(EMBEDDED_BUDGET, merge=args.merge or "sum")]
    if args.merge and not asked:
        raise ValueError("--merge needs a budget: add --dominant and --contextual, or --tokens-per-image.")
    return [None, asked] if args.compare_full and asked else [asked]


def asked_budget(args: argparse.Namespace) -> VisionZipConfig | None:
    merge, counts = args.merge or "sum", (args.dominant, args.contextual)
    if args.tokens_per_image is not None:
        if counts != (None, None):
            raise ValueError("--tokens-per-image replaces --dominant and --contextual: give one or the other.")
        return VisionZipConfig(tokens_per_image=args.tokens_per_image, merge=merge)
    if counts == (None, None):
        return None
    if None in counts:
        raise ValueError(
            f"--dominant and --contextual go together; got {args.dominant} and {args.contextual}. "
            f"54 and 10 are usual for 576 tokens; --contextual 0 only drops."
        )
    return VisionZipConfig(*counts, merge=merge)


def choose_data(args: argparse.Namespace, task: Task) -> Data:
    """The files to use, all of which exist."""
    default = task.data if args.checkpoint else task.embedded
    names = ("question_file", "image_folder", "annotation_file")
    paths = [Path(getattr(args, name) or playground() / getattr(default, name)) for name in names]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"{task.name} needs {', '.join(map(str, missing))}, which is not there. Fetch\n"
            + "\n".join(f"  {step}" for step in default.fetch)
            + "\nor name other places with --question-file, --image-folder and --annotation-file."
        )
    return Data(*paths, fetch=default.fetch)


def require_annotations(task: Task, data: Data, questions: list[Question]) -> None:
    """Score empty answers: an annotation that is broken or belongs to other questions shows before the work is done."""
    rows = [{"question_id": q.question_id, "prompt": q.text, "text": ""} for q in questions]
    with quiet():
        task.metric(data.annotation_file, rows)


def require_images(data: Data, questions: list[Question]) -> None:
    if missing := missing_images(questions, data.image_folder):
        raise ValueError(
            f"{len(missing)} images are not in {data.image_folder}; the first is {missing[0].image} "
            f"({data.question_file}, line {missing[0].line}). Fetch\n"
            + "\n".join(f"  {step}" for step in data.fetch)
            + "\nor leave those questions out, counted, with --skip-bad."
        )


def describe_settings(
    args: argparse.Namespace, task: Task, checkpoint: str, data: Data, questions: list[Question], decoding: Decoding
) -> dict:
    """What must be equal for answers of two runs to be mixed, but for the budget."""
    content = json.dumps([(q.question_id, q.image, q.text) for q in questions])
    automatic = "float16" if device_of(args.device, ALONE).startswith("cuda") else "float32"
    return {
        "task": task.name,
        "checkpoint": str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint,
        "weights": fingerprint(checkpoint),
        "model_base": args.model_base,
        "dtype": args.dtype or automatic,
        "quantization": "8bit" if args.load_8bit else "4bit" if args.load_4bit else None,
        "questions": f"{len(questions)}, sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}",
        "image_folder": str(data.image_folder.resolve()),
        "prompt": decoding.prompt("{question}" + task.prompt_suffix),
        "max_new_tokens": decoding.max_new_tokens,
    }


def answers_path(args: argparse.Namespace, checkpoint: str, budget: VisionZipConfig | None, main: bool) -> Path:
    """Where a budget's answers go; with --answers-file the full-token ones get a name beside it."""
    if args.answers_file:
        path = Path(args.answers_file)
        return path if main else path.with_name(f"{path.stem}.full{path.suffix}")
    folder = Path(args.out or playground() / "results" / args.task / get_model_name_from_path(checkpoint))
    bits = ["-8bit"] * args.load_8bit + ["-4bit"] * args.load_4bit
    first = f"-first-{args.limit}" if args.limit else ""
    return folder / f"{budget_name(budget)}{''.join(bits)}{first}.jsonl"


def budget_name(budget: VisionZipConfig | None) -> str:
    """A budget for tables and file names: full, 54+10, 160-per-image."""
    if budget is None:
        return "full"
    counts = f"{budget.dominant}+{budget.contextual}"
    name = counts if budget.tokens_per_image is None else f"{budget.tokens_per_image}-per-image"
    options = [option for option, usual in ((budget.merge, "sum"), (budget.selector, "attention")) if option != usual]
    return "-".join([name, *options])


def open_variant(args, checkpoint, budget, path, questions, settings, shard) -> Variant:
    settings = {**settings, "visionzip": budget.to_dict() if budget else None}
    # The embedded model answers in seconds: only an interrupted run of it goes on, a finished one starts again.
    restart = args.checkpoint is None and not is_interrupted(path, settings)
    name = get_model_name_from_path(checkpoint)
    answers = AnswerFile(path, questions, settings, shard=shard, model_id=name, overwrite=args.overwrite or restart)
    if answers.resumed:
        tell(f"{path}: {answers.resumed} of {len(questions)} questions are answered already.")
    return Variant(budget, answers)


def is_interrupted(path: Path, settings: dict) -> bool:
    meta, result = (path.with_name(f"{path.name}.{kind}.json") for kind in ("meta", "result"))
    return meta.exists() and not result.exists() and read_json(meta) == settings


def load(args: argparse.Namespace, checkpoint: str, budgets: list[VisionZipConfig | None], shard: Shard):
    """(tokenizer, model, image processor), for which every budget is possible."""
    tokenizer, model, image_processor, _ = load_pretrained_model(
        checkpoint,
        args.model_base,
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
        device=device_of(args.device, shard),
        use_flash_attn=args.flash_attn,
        dtype=DTYPES.get(args.dtype),
    )
    if image_processor is None:
        raise ValueError(f"{checkpoint} sees no images: there is no mm_vision_tower in its config.json.")
    for budget in budgets:
        set_budget(model, budget)
    return tokenizer, model, image_processor


def device_of(device: str, shard: Shard) -> str:
    """The torch device of a process, for "auto", "cpu" or "cuda". Raises ValueError if there is no GPU for "cuda"."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here. Use --device cpu, or leave it out.")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', shard.index)}" if shard.count > 1 else "cuda"


def choose_threads(args: argparse.Namespace) -> None:
    """One CPU thread for the embedded model, unless OMP_NUM_THREADS says otherwise.

    It is too small to gain from more, and on a busy machine threads that wait for each other make it ten times slower.
    """
    if args.checkpoint is None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def set_budget(model, budget: VisionZipConfig | None) -> None:
    if budget is None:
        unzip(model)
    else:
        visionzip(model, **budget.to_dict())


def evaluate(args, task: Task, data: Data, decoding: Decoding, variant: Variant, loaded) -> dict | None:
    """Answer, merge, score and save one variant; None in all processes but the first."""
    answers, start, timing = variant.answers, time.perf_counter(), None
    new = len(answers.questions) - answers.resumed
    if answers.todo:
        set_budget(loaded[1], variant.budget)
    is_first = fill(
        answers,
        loaded,
        data.image_folder,
        decoding=decoding,
        prompt_suffix=task.prompt_suffix,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        progress=budget_name(variant.budget) if answers.shard.index == 0 else None,
    )
    if not is_first:
        return None
    if new:
        timing = {
            "seconds": round(time.perf_counter() - start, 2),
            "questions": new,
            "batch_size": args.batch_size,
            "device": describe_device(args, answers.shard),
            "processes": answers.shard.count,
            "flash_attn": args.flash_attn,
        }
    elif answers.result.exists():  # nothing was left to do: how long it took is known from then
        timing = read_json(answers.result)["timing"]
    result = summarize(task, data, variant, timing)
    write_json(answers.result, result)
    return result


def fill(answers: AnswerFile, loaded, image_folder: str | Path, **options) -> bool:
    """Answer what has no answer yet and bring it together; whether this process is the one that holds it all.

    Args:
        loaded: (tokenizer, model, image processor); not looked at if nothing is left to do.
        options: as for `answer_questions`.

    Raises:
        Stopped: Ctrl-C.
    """
    try:
        if answers.todo:
            tokenizer, model, image_processor = loaded
            answer_questions(model, tokenizer, image_processor, answers.todo, image_folder, answers, **options)
        return answers.finish()
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped with {len(answers.rows)} of {len(answers.questions)} answers in {answers.path}. "
            f"The same command goes on from there."
        ) from None


def summarize(task: Task, data: Data, variant: Variant, timing: dict | None) -> dict:
    """The result as it is saved beside the answers. Scores are in % of the answered questions."""
    answers = variant.answers
    rows = [answers.rows[row] for row in sorted(answers.rows)]
    tokens = [row["metadata"]["image_tokens"] for row in rows]
    spread = {"mean": sum(tokens) / len(tokens), "min": min(tokens), "max": max(tokens)} if rows else None
    return {
        "budget": budget_name(variant.budget),
        "scores": task.metric(data.annotation_file, rows) if rows else None,
        "questions": len(answers.questions),
        "answered": len(rows),
        "skipped": [
            {"line": refusal.question.line, "question_id": refusal.question.question_id, "reason": refusal.reason}
            for refusal in answers.refused
        ],
        "tokens_per_image": spread,
        "timing": timing,
        "answers_file": str(answers.path),
        "question_file": str(data.question_file),
        "annotation_file": str(data.annotation_file),
        "settings": read_json(answers.meta),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
    }


def describe_device(args: argparse.Namespace, shard: Shard) -> str:
    device = device_of(args.device, shard)
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def print_report(results: list[dict]) -> None:
    """A table of all variants, and below it what was left out."""
    names = list(next((result["scores"] for result in results if result["scores"]), {}))
    head = ["budget", "tokens per image", *(f"{name} %" for name in names), "answered", "seconds", "answers"]
    lines = [[*head], ["---"] * len(head)]
    for result in results:
        scores = [f"{result['scores'][name]:.2f}" if result["scores"] else "-" for name in names]
        answered = f"{result['answered']} of {result['questions']}"
        lines.append(
            [result["budget"], tokens_text(result), *scores, answered, seconds_text(result), result["answers_file"]]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print()
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    for result in results:
        print_skipped(result)


def print_skipped(result: dict) -> None:
    skipped = result["skipped"]
    if not skipped:
        return
    counted = "".join(
        f"; {name} with these as wrong: {score * result['answered'] / result['questions']:.2f} %"
        for name, score in (result["scores"] or {}).items()
    )
    print(f"\n{result['budget']}: {len(skipped)} of {result['questions']} questions skipped, not scored{counted}")
    for skip in skipped[:10]:
        print(f"  line {skip['line']} of {result['question_file']}: {skip['reason']}")
    if len(skipped) > 10:
        print(f"  and {len(skipped) - 10} more, listed in {result['answers_file']}.result.json")


def tokens_text(result: dict) -> str:
    tokens = result["tokens_per_image"]
    if tokens is None:
        return "-"
    if tokens["min"] == tokens["max"]:
        return str(tokens["min"])
    return f"{tokens['mean']:.1f} ({tokens['min']} to {tokens['max']})"


def seconds_text(result: dict) -> str:
    timing = result["timing"]
    if timing is None:
        return "-"
    part = "" if timing["questions"] == result["questions"] else f" (last {timing['questions']})"
    return f"{timing['seconds']:.1f}{part}"


def tell(message: str) -> None:
    """Say something once, however many processes run."""
    if current_shard().index == 0:
        print(message, file=sys.stderr)


def end(message, status: int = BAD_REQUEST) -> int:
    """Say why it ends; any process may have reasons of its own, but an interruption concerns them all."""
    index = current_shard().index
    if index == 0 or status != INTERRUPTED:
        print(f"{f'[process {index}] ' * (index > 0)}{message}", file=sys.stderr)
    return status


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run",
        description="Answer the questions of a benchmark with a LLaVA checkpoint and score them. "
        "An interrupted run goes on with the same command.",
        epilog="Exit status: 0 done, 1 some questions could not be answered, 2 bad request, 130 interrupted.",
    )
    parser.add_argument("task", choices=sorted(TASKS), help="benchmark")
    parser.add_argument("checkpoint", nargs="?", help="folder or hub id; without it, the embedded model and data")
    parser.add_argument("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")

    group = parser.add_argument_group("VisionZip budget (default: what the checkpoint carries, else all tokens)")
    add = group.add_argument
    add("--dominant", type=int, metavar="D", help="tokens kept of each crop, CLS included")
    add("--contextual", type=int, metavar="C", help="tokens merged from the rest of each crop; 0 drops the rest")
    add("--tokens-per-image", type=int, metavar="N", help="instead of these two: tokens over all crops of an image")
    add("--merge", choices=MERGES, help="as the published code (sum, default) or the paper's text (mean)")
    add("--compare-full", action="store_true", help="run with all tokens too, for a row of the same table")

    add = parser.add_argument_group("data (default: LLaVA's layout under playground/data)").add_argument
    add("--question-file", metavar="FILE", help="JSONL with question_id, image, text")
    add("--image-folder", metavar="DIR", help="what `image` is relative to")
    add("--annotation-file", metavar="FILE", help="the true answers")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--skip-bad", action="store_true", help="leave out questions whose image cannot be used, and count them")

    add = parser.add_argument_group("output (default: playground/results/TASK/CHECKPOINT/BUDGET.jsonl)").add_argument
    add("--answers-file", metavar="FILE", help="JSONL of the answers; FILE.result.json gets the score")
    add("--out", metavar="DIR", help="folder for BUDGET.jsonl and its result")
    add("--overwrite", action="store_true", help="throw earlier answers away instead of going on from them")

    add = parser.add_argument_group("model").add_argument
    add("--conv-mode", default="vicuna_v1", metavar="NAME", help="prompt template (default: vicuna_v1)")
    add("--max-new-tokens", type=positive, metavar="N", help="longest answer, in tokens (default: 128)")
    add("--batch-size", type=positive, default=16, metavar="N", help="questions at a time (default: 16)")
    add("--num-workers", type=positive, metavar="N", help="threads for images (default: one per core, at most 8)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--dtype", choices=tuple(DTYPES), help="default: float16 on a GPU, float32 on a CPU")
    add("--load-8bit", action="store_true", help="quantize the language model to 8 bits (bitsandbytes)")
    add("--load-4bit", action="store_true", help="quantize the language model to 4 bits (bitsandbytes)")
    add("--flash-attn", action="store_true", help="flash-attn 2 in the language model instead of SDPA")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
