"""The result of a run: what is saved next to the answers, and the table on the screen."""

from collections.abc import Sequence

from llava.eval.answers import AnswerFile
from llava.eval.tasks.base import Data, Task
from llava.inference.budget import budget_name
from llava.utils.cli import silence_logging
from llava.utils.environment import versions
from llava.utils.files import read_json
from llava.utils.tables import to_table
from visionzip_patch import VisionZipConfig


def summarize(task: Task, data: Data, budget: VisionZipConfig | None, answers: AnswerFile, timing: dict | None) -> dict:
    """Sum up a run as it is saved next to its answers; scores are of the answered questions."""
    rows = [answers.rows[row] for row in sorted(answers.rows)]
    with silence_logging():  # how many are answered is said below
        scores = task.metric(data, rows) if task.metric and rows else None
    return {
        "budget": budget_name(budget),
        "scores": scores,
        "unit": task.unit,
        "questions": len(answers.questions),
        "answered": len(rows),
        "skipped": [
            {"line": refusal.question.line, "question_id": refusal.question.question_id, "reason": refusal.reason}
            for refusal in answers.refused
        ],
        "tokens_per_image": tokens_per_image(answers),
        "timing": timing,
        "answers_file": str(answers.path),
        "question_file": str(data.question_file),
        "annotation_file": data.annotation_file and str(data.annotation_file),
        "settings": read_json(answers.meta),
        "versions": versions(),
    }


def tokens_per_image(answers: AnswerFile) -> dict[str, float] | None:
    """Compute the mean of visual tokens per image, and the least and the most of any question; None without images."""
    images = {row: count for row in answers.rows if (count := len(answers.by_row[row].images))}
    if not images:
        return None
    tokens = {row: answers.rows[row]["metadata"]["image_tokens"] for row in images}
    each = [round(tokens[row] / count) for row, count in images.items()]
    return {"mean": sum(tokens.values()) / sum(images.values()), "min": min(each), "max": max(each)}


def print_report(results: Sequence[dict]) -> None:
    """Print a table of all results, and below it what was left out."""
    names = list(dict.fromkeys(name for result in results for name in result["scores"] or ()))
    head = [
        "budget",
        "tokens per image",
        *(f"{name} {results[0]['unit']}" for name in names),
        "answered",
        "seconds",
        "answers",
    ]
    lines = [head]
    for result in results:
        known = result["scores"] or {}
        scores = [f"{known[name]:.2f}" if name in known else "-" for name in names]
        answered = f"{result['answered']} of {result['questions']}"
        seconds = f"{result['timing']['seconds']:.1f}" if result["timing"] else "-"
        lines.append([result["budget"], tokens_text(result), *scores, answered, seconds, result["answers_file"]])
    print(f"\n{to_table(lines, left=len(head))}")
    for result in results:
        if result["submission"]:
            print(f"\n{result['budget']}: submission in {result['submission']}")
        print_skipped(result)


def print_skipped(result: dict, most: int = 10) -> None:
    """Print the questions that were left out, `most` of them."""
    skipped = result["skipped"]
    if not skipped:
        return
    print(f"\n{result['budget']}: {len(skipped)} of {result['questions']} questions skipped, not scored")
    for skip in skipped[:most]:
        print(f"  line {skip['line']} of {result['question_file']}: {skip['reason']}")
    if len(skipped) > most:
        print(f"  and {len(skipped) - most} more, listed in {result['answers_file']}.result.json")


def tokens_text(result: dict) -> str:
    """Write the tokens per image, with their range where they differ."""
    tokens = result["tokens_per_image"]
    if tokens is None:
        return "-"
    if tokens["min"] == tokens["max"]:
        return str(tokens["min"])
    return f"{tokens['mean']:.1f} ({tokens['min']} to {tokens['max']})"
