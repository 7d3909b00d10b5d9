"""Let a language model grade free answers: `python -m llava.eval.judge mmvet ANSWERS --base-url URL --model NAME`.

ANSWERS is what `llava.eval.run` has written, or several such files. Any endpoint that takes OpenAI's /chat/completions
will do, a local one too; no other command asks one. Beside NAME.jsonl:

    NAME.jsonl.graded-by-JUDGE.jsonl   a row per grade, appended as they come: the same command asks for those that are
                                       missing, and again for those that could not be read
    NAME.jsonl.result.json             gets the scores, and the names under which the judge has answered
"""

import argparse
import ast
import hashlib
import logging
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from llava.eval.endpoint import Judge
from llava.eval.metrics import judged
from llava.eval.metrics.vqa import rows_by_id
from llava.eval.tasks import TASKS
from llava.inference.embedded import playground
from llava.utils.cli import EXIT_STATUSES, QUESTIONS_REFUSED, add_verbose, positive, print_once, run_command
from llava.utils.files import drop_lock, read_bytes, read_json, read_jsonl, shorten, take_lock, to_line, write_json
from llava.utils.parallel import for_all
from llava.utils.tables import to_table

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping]


class Verdict(NamedTuple):
    """What all grades of an answers file come to."""

    scores: dict[str, float]  # by name, 0 to 100; none where no grade can be read
    std: float | None  # of the first score over the times that everything was graded
    judges: list[str]  # the names under which the judge has answered
    grades: int
    unreadable: list[str]  # replies without a grade; they count as the benchmark's own script counts them


class MMVet:
    """MM-Vet's answered questions, as its mm-vet_evaluator.py has them graded.

    Args:
        folder: where mm-vet.json is.
        rules: mm-vet_evaluator.py, of which the text `prompt` is read, or a file with that text.
        answers: rows with `question_id` and `text`.
    """

    RULES = "mm-vet_evaluator.py"
    SOURCE = "https://raw.githubusercontent.com/yuweihao/MM-Vet/main/mm-vet_evaluator.py"
    UNREADABLE = "0"  # what a grade that cannot be read counts as

    def __init__(self, folder: Path, rules: Path, answers: Rows):
        table, questions, texts = read_table(rules), read_json(folder / "mm-vet.json"), judged.mmvet_answers(answers)
        rows_by_id(({"question_id": name} for name in texts), questions)  # raises where answers are to other questions
        self.asked = len(questions)  # by the benchmark, answered or not
        self.questions = {name: question for name, question in questions.items() if name in texts}
        self.prompts = {
            name: judged.mmvet_prompt(table, question["question"], question["answer"], texts[name])
            for name, question in self.questions.items()
        }

    def grade(self, judge: Judge, name: str) -> dict:
        for attempt, temperature in enumerate(judged.TEMPERATURES):
            prompt = self.prompts[name] + judged.INSIST * (attempt > 0)
            reply = judge.ask(prompt, temperature=temperature, max_tokens=3)
            if (grade := judged.parse_grade(reply.text)) is not None:
                break
        return {"question_id": name, "score": grade, "content": reply.text, "model": reply.model}

    @staticmethod
    def is_readable(row: Mapping) -> bool:
        return row["score"] is not None

    def add_up(self, grades: Rows) -> tuple[dict[str, float], float | None]:
        scores = defaultdict(list)
        for row in grades:
            scores[row["question_id"]].append(row["score"] or 0.0)
        result = judged.mmvet_score(self.questions, {name: {"score": runs} for name, runs in scores.items()})
        return {"total": result.total, **result.capabilities}, result.std


class LLaVABench:
    """LLaVA-Bench's answered questions, as LLaVA's eval_gpt_review_bench.py has them reviewed.

    Args:
        folder: where questions.jsonl, context.jsonl and answers_gpt4.jsonl are.
        rules: rule.json.
        answers: rows with `question_id` and `text`.
    """

    RULES = "rule.json"
    SOURCE = "https://raw.githubusercontent.com/haotian-liu/LLaVA/main/llava/eval/table/rule.json"
    UNREADABLE = "-1 for both answers"

    def __init__(self, folder: Path, rules: Path, answers: Rows):
        names = ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
        questions, contexts, references = ([row for _, row in read_jsonl(folder / name)] for name in names)
        answered, self.asked = rows_by_id(answers, (row["question_id"] for row in questions)), len(questions)
        questions, references = (
            [row for row in rows if str(row["question_id"]) in answered] for rows in (questions, references)
        )
        reviews = judged.llava_bench_reviews(questions, contexts, references, answers, read_rules(rules))
        self.reviews = {str(review.row["question_id"]): review for review in reviews}
        self.prompts = {name: review.prompt for name, review in self.reviews.items()}

    def grade(self, judge: Judge, name: str) -> dict:
        reply = judge.ask(self.prompts[name], system=judged.REVIEWER, temperature=0.2, max_tokens=1024)
        return {**self.reviews[name].reviewed(reply.text), "model": reply.model}

    @staticmethod
    def is_readable(row: Mapping) -> bool:
        return tuple(row["tuple"]) != judged.FAILED

    def add_up(self, grades: Rows) -> tuple[dict[str, float], float | None]:
        categories = judged.llava_bench_score(grades).categories
        ratios = {name.removeprefix("llava_bench_"): score.ratio for name, score in categories.items()}
        return {name: ratio for name, ratio in ratios.items() if ratio is not None}, None


BENCHES = {"mmvet": MMVet, "llava_bench": LLaVABench}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    kind = BENCHES[args.task]
    if args.runs > 1 and kind is not MMVet:
        raise ValueError("--runs is for mmvet: the other benchmarks' scripts have every answer graded once.")
    key = os.environ.get(args.key_env, "").strip() if args.key_env else ""
    if args.key_env and not key:
        raise ValueError(f"The environment variable {args.key_env}, which --key-env names, is empty or not set.")
    folder = Path(args.data or TASKS[args.task].data.below(playground()).annotation_file.parent)
    rules = Path(args.rules or folder / kind.RULES)
    if not rules.is_file():
        raise ValueError(f"{rules}, with which the judge is asked, is not there. Fetch it from {kind.SOURCE}")
    judge = Judge(args.base_url, args.model, key)
    paths = list(map(Path, args.answers))
    results = {path: read_result(path, args.task) for path in paths}  # before anything that may cost money
    benches = {path: kind(folder, rules, read_answers(path)) for path in paths}

    verdicts = {}
    for path, bench in benches.items():
        grades = grade_all(bench, judge, path, runs=args.runs, parallel=args.parallel)
        verdict = verdicts[path] = to_verdict(bench, grades)
        if verdict.scores:
            record = {"asked": args.model, "answered": verdict.judges, "runs": args.runs, "std": verdict.std}
            counts = {"grades": verdict.grades, "unreadable": len(verdict.unreadable)}
            save(path, results[path], verdict.scores, record | counts)
        if verdict.unreadable:
            print_once(f"{path}: {complaint(verdict, kind.UNREADABLE)}")
    print(to_table(to_lines(benches, verdicts), left=2))
    return QUESTIONS_REFUSED if any(verdict.unreadable for verdict in verdicts.values()) else 0


def to_verdict(bench: MMVet | LLaVABench, grades: Rows) -> Verdict:
    unreadable = [row["content"] for row in grades if not bench.is_readable(row)]
    scores, std = bench.add_up(grades) if len(unreadable) < len(grades) else ({}, None)
    return Verdict(scores, std, sorted({row["model"] for row in grades}), len(grades), unreadable)


def save(path: Path, result: dict | None, scores: dict[str, float], record: dict) -> None:
    """Put the scores, and what is to be said of the judge, into the result of the answers in `path`, if it has one."""
    if result is None:
        print_once(f"{path} has no result file, so llava.eval.report will not show these scores.")
        return
    before = result.get("judge")
    if before and before["asked"] != record["asked"]:
        old = ", ".join(f"{name} {score:.1f}" for name, score in result["scores"].items())
        print_once(f"{result_file(path)}: replaces {old} by {', '.join(before['answered'])}.")
    write_json(result_file(path), {**result, "scores": scores, "judge": record})


def complaint(verdict: Verdict, counts_as: str) -> str:
    """Of grades that cannot be read: how many, what becomes of them, and what the judge has said instead of one."""
    if verdict.scores:
        text = f"{len(verdict.unreadable)} of {verdict.grades} grades cannot be read and count as {counts_as}, as in "
        text += "the benchmark's own script."
    else:
        text = f"none of the {verdict.grades} grades can be read, so there is no score; its result stays as it was."
    reply = shorten(verdict.unreadable[0], 300)
    return f"{text} The judge said, for instance, {reply}. The same command asks again for what cannot be read."


def to_lines(benches: Mapping[Path, MMVet | LLaVABench], verdicts: Mapping[Path, Verdict]) -> list[list[str]]:
    """Those of a table: answers, judge and scores; files may be of different parts of a benchmark."""
    names = list(dict.fromkeys(name for verdict in verdicts.values() for name in verdict.scores))
    lines = [["answers", "judge", *names, "questions", "unreadable"]]
    for path, verdict in verdicts.items():
        scores = [f"{verdict.scores[name]:.1f}" if name in verdict.scores else "-" for name in names]
        counts = (
            f"{len(benches[path].prompts)} of {benches[path].asked}",
            f"{len(verdict.unreadable)} of {verdict.grades}",
        )
        lines.append([str(path), ", ".join(verdict.judges), *scores, *counts])
    return lines


def result_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.result.json")


def read_result(path: Path, task: str) -> dict | None:
    """What the run that made the answers has said of them, if it has. Raises ValueError if it was of another task."""
    if not result_file(path).exists():
        return None
    result = read_json(result_file(path))
    if (made_for := result["settings"]["task"]) != task:
        raise ValueError(f"{path} holds answers to {made_for}, not to {task}.")
    return result


def read_answers(path: Path) -> list[dict]:
    """The rows of an answers file.

    Raises:
        ValueError: there are none, or a row holds no answer.
    """
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path}: no answers in it.")
    for number, row in rows:
        if not {"question_id", "text"} <= row.keys():
            raise ValueError(f"{path}, line {number}: no answer, which has a question_id and a text.")
        if "image" in row and "answer_id" not in row:
            raise ValueError(
                f"{path}, line {number}: a question, not an answer. Give the file that llava.eval.run made."
            )
    return [row for _, row in rows]


def read_table(path: Path) -> str:
    """MM-Vet's instructions and few-shot table: a text, or what the script they come with calls `prompt`; not run."""
    try:
        table = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text ({error}). Fetch it again: {MMVet.SOURCE}") from None
    if path.suffix == ".py":
        try:
            statements = [node for node in ast.parse(table).body if isinstance(node, ast.Assign)]
            (value,) = [node.value for node in statements if ast.unparse(node.targets) == "prompt"]
            table = str(ast.literal_eval(value))
        except (SyntaxError, ValueError):
            raise ValueError(
                f"{path}: no Python that sets `prompt` to a text. Fetch it again: {MMVet.SOURCE}"
            ) from None
    if not re.search(r"^-+ *\|", table, re.MULTILINE):  # the prompt is one more row of it
        raise ValueError(f"{path}: no few-shot table in it (--- | --- | --- | ---). Fetch it again: {MMVet.SOURCE}")
    return table


def read_rules(path: Path) -> dict[str, dict]:
    """LLaVA-Bench's rules: "llava_bench_" and category -> `role` and `prompt`."""
    content = read_json(path)
    names = [name for name in content if name.startswith("llava_bench_")] if isinstance(content, dict) else []
    rules = {name: content[name] for name in names}
    if not rules or not all(isinstance(rule, dict) and {"role", "prompt"} <= rule.keys() for rule in rules.values()):
        raise ValueError(
            f"{path}: must hold an object with a role and a prompt for llava_bench_conv, llava_bench_detail and "
            f"llava_bench_complex. Fetch it again: {LLaVABench.SOURCE}"
        )
    return rules


def grade_all(bench: MMVet | LLaVABench, judge: Judge, path: Path, *, runs: int, parallel: int) -> list[dict]:
    """A row for each question and run. Readable ones of the same judge and prompt that are kept are not asked for.

    Args:
        bench: what to ask about the answers in `path`.
        judge: whom to ask.
        path: the answers; grades are kept beside them.
        runs: how often to grade each answer.
        parallel: how many requests at a time.

    Raises:
        ValueError: one prompt cannot be answered, another process grades the same, or the file is broken.
    """
    kept = path.with_name(f"{path.name}.graded-by-{re.sub('[^A-Za-z0-9_.-]+', '-', judge.model)}.jsonl")
    digests = {name: hashlib.sha256(prompt.encode()).hexdigest()[:16] for name, prompt in bench.prompts.items()}
    wanted = [(name, digest, number) for number in range(runs) for name, digest in digests.items()]
    with open_to_append(kept) as file:
        grades = {
            (str(row["question_id"]), row["prompt"], row["run"]): row
            for _, row in read_jsonl(kept)
            if row["judge"] == judge.model and bench.is_readable(row)
        }
        todo, writing = [key for key in wanted if key not in grades], threading.Lock()

        def ask(key: tuple[str, str, int]) -> None:
            name, digest, number = key
            row = {**bench.grade(judge, name), "run": number, "judge": judge.model, "prompt": digest}
            with writing:
                file.write(to_line(row).encode())
                file.flush()
                grades[key] = row

        done = len(wanted) - len(todo)
        try:
            with tqdm(desc=path.name, total=len(wanted), initial=done, unit="grade", dynamic_ncols=True) as bar:
                for_all(todo, ask, parallel=parallel, stopped=judge.stopped, progress=bar.update)
        except BaseException:
            if count := sum(key in grades for key in wanted):
                logger.warning("%d of %d grades are kept in %s.", count, len(wanted), kept)
            raise
    return [grades[key] for key in wanted]


@contextmanager
def open_to_append(path: Path) -> Iterator[BinaryIO]:
    """A file of lines, open behind the last whole one. Raises ValueError if another process has it open so."""
    lock_path = path.with_name(f"{path.name}.lock")
    lock = take_lock(lock_path)
    try:
        with path.open("ab") as file:
            file.truncate(path.read_bytes().rfind(b"\n") + 1)  # a kill leaves half a line
            yield file
    finally:
        drop_lock(lock, lock_path)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.judge",
        usage="%(prog)s TASK ANSWERS ... --base-url URL --model NAME [option ...]",
        description="Let a language model grade the answers to a benchmark, and add the grades up as the benchmark's "
        "own script does. An interrupted run goes on with the same command. Grades of different judges do not compare.",
        epilog=f"{EXIT_STATUSES} A question whose grade cannot be read counts as not answered.",
    )
    add = parser.add_argument
    add("task", choices=BENCHES, metavar="TASK", help=f"one of {', '.join(BENCHES)}")
    add("answers", nargs="+", metavar="ANSWERS", help="JSONL files with question_id and text, from llava.eval.run")
    add("--base-url", required=True, metavar="URL", help="its address, such as http://localhost:8000/v1")
    add("--model", required=True, metavar="NAME", help="the judge, by the name that the endpoint knows")
    add("--key-env", metavar="VARIABLE", help="environment variable with the endpoint's key (default: no key is sent)")
    add("--data", metavar="DIR", help="folder of the benchmark's files (default: below playground/data/eval)")
    rules = " and ".join(f"{bench.RULES} of {task}" for task, bench in BENCHES.items())
    add("--rules", metavar="FILE", help=f"how the judge is asked: {rules} (default: in that folder)")
    add("--runs", type=positive, default=1, metavar="N", help="mmvet: grade so many times (default: 1; its paper: 5)")
    add("--parallel", type=positive, default=4, metavar="N", help="requests at a time (default: 4)")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
