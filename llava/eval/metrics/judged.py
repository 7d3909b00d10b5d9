"""MM-Vet and LLaVA-Bench: free answers, graded by a language model. What it is asked, and what its grades add up to.

MM-Vet (Yu et al., arXiv 2308.02490) as mm-vet_evaluator.py asks and adds up; its few-shot table comes with that script.
LLaVA-Bench in the wild as LLaVA's eval_gpt_review_bench.py asks and summarize_gpt_review.py adds up; the wording of its
rules comes with LLaVA (rule.json). Published numbers are of judges that are gone (gpt-4-0613, gpt-4-0314): grades of
another judge compare with each other only.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean, pstdev
from typing import NamedTuple

from llava.eval.metrics.matching import rows_by_id

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
REVIEWER = "You are a helpful and precise assistant for checking the quality of the answer."  # LLaVA-Bench's system
FAILED = (-1.0, -1.0)  # stands for the two scores of a review that cannot be read
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)  # at which MM-Vet asks for a grade until it can read one
INSIST = "\nPredict the correctness of the answer (digit): "  # what it adds to the prompt from the second time on


class MMVetResult(NamedTuple):
    """Scores from 0 to 100, rounded to one decimal as MM-Vet's script writes them."""

    total: float
    capabilities: dict[str, float]  # of the questions that need it, in MM-Vet's order
    std: float  # of the totals of the runs


class CategoryScore(NamedTuple):
    """Mean scores, 0 to 10, of the reference and of the model in one category of LLaVA-Bench."""

    reference: float
    model: float

    @property
    def ratio(self) -> float | None:
        """The model's mean as a percentage of the reference's, to one decimal: the number that papers report.

        None where the reference has 0.
        """
        return round(self.model / self.reference * 100, 1) if self.reference else None


class LLaVABenchResult(NamedTuple):
    """Scores by category and of all reviews together."""

    categories: dict[str, CategoryScore]  # "all" first, then llava_bench_complex, llava_bench_conv, llava_bench_detail
    failed: int  # reviews whose scores could not be read; each is in the means as -1 and -1


def mmvet_answers(predictions: Sequence[Mapping]) -> dict[str, str]:
    """Make the content of the answers file that MM-Vet's script and its public judge take: {"v1_0": text}.

    Args:
        predictions: rows with `question_id`, 0 or "v1_0", and `text`. Of rows with the same id the last counts.
    """
    return {f"v1_{str(row['question_id']).removeprefix('v1_')}": row["text"] for row in predictions}


def mmvet_prompt(table: str, question: str, answer: str, prediction: str) -> str:
    """Write what MM-Vet asks the judge: the next grade of `table`, at `TEMPERATURES`, in at most 3 tokens.

    Args:
        table: its instructions and few-shot table (`prompt` in mm-vet_evaluator.py).
        question: `question` of mm-vet.json.
        answer: `answer` of mm-vet.json, parts of it joined by <AND> or <OR>.
        prediction: the model's answer.
    """
    answer = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{table}\n{question} | {answer} | {prediction} | "


def parse_grade(text: str) -> float | None:
    """Read the grade, 0 to 1, that the judge's answer begins with; None if it does not begin with one."""
    try:
        grade = float(text.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0 <= grade <= 1 else None


def mmvet_score(questions: Mapping[str, Mapping], grades: Mapping[str, Mapping]) -> MMVetResult:
    """Add up grades as MM-Vet's script does; a question without any counts 0.

    Args:
        questions: question id -> `capability`, a list (mm-vet.json).
        grades: question id -> `score`, one grade from 0 to 1 per run (the grade file that MM-Vet's script writes).

    Raises:
        ValueError: grades are to questions that are not in `questions`, or not all of as many runs.
    """
    graded = rows_by_id(({"question_id": name, **grade} for name, grade in grades.items()), questions)
    scores = {name: grade["score"] for name, grade in graded.items()}
    counts = sorted({len(runs) for runs in scores.values()})
    if len(counts) != 1 or counts == [0]:
        raise ValueError(f"Each question must be graded once per run; found {counts or 'no'} grades per question.")
    (run_count,) = counts
    nothing = [0.0] * run_count

    def totals(names: Sequence[str]) -> list[float]:  # of each run, 0 to 100
        return [100 * fmean(run) for run in zip(*(scores.get(name, nothing) for name in names), strict=True)]

    with_capability = {
        capability: [name for name, question in questions.items() if capability in question["capability"]]
        for capability in CAPABILITIES
    }
    runs = totals(list(questions))
    return MMVetResult(
        total=round(fmean(runs), 1),
        capabilities={name: round(fmean(totals(names)), 1) for name, names in with_capability.items() if names},
        std=round(pstdev(runs), 1),
    )


class Review(NamedTuple):
    """One question to LLaVA-Bench's judge."""

    row: dict  # id, question_id, answer1_id (the reference), answer2_id (the model) and category
    prompt: str

    def reviewed(self, text: str) -> dict:
        """Make the row of the review file that LLaVA's scripts write, with the judge's answer and the scores in it."""
        return {**self.row, "content": text, "tuple": parse_scores(text)}


def llava_bench_reviews(
    questions: Sequence[Mapping],
    contexts: Sequence[Mapping],
    references: Sequence[Mapping],
    predictions: Sequence[Mapping],
    rules: Mapping[str, Mapping],
) -> list[Review]:
    """Write what LLaVA-Bench asks the judge: at temperature 0.2, in at most 1024 tokens, with `REVIEWER` as system.

    Args:
        questions: rows with `question_id`, `image`, `text` and `category` (questions.jsonl).
        contexts: rows with `image` and `caption`, a text or a list of lines (context.jsonl).
        references: rows with `question_id` and `text`, the answers to compare with (answers_gpt4.jsonl).
        predictions: rows with `question_id` and `text`, the model's answers. Of rows with the same id the last counts.
        rules: "llava_bench_" and category -> `role` and `prompt` (rule.json).

    Raises:
        ValueError: a question lacks its context, rule, reference or prediction, or an answer its question.
    """
    ids = [question["question_id"] for question in questions]
    reference_of, prediction_of = rows_by_id(references, ids), rows_by_id(predictions, ids)
    context_of = {row["image"]: row for row in contexts}
    reviews = []
    for number, question in enumerate(questions, start=1):
        name, category = str(question["question_id"]), f"llava_bench_{question['category']}"
        parts = {
            "context": context_of.get(question["image"]),
            "rule": rules.get(category),
            "reference": reference_of.get(name),
            "prediction": prediction_of.get(name),
        }
        if missing := [part for part, value in parts.items() if value is None]:
            raise ValueError(
                f"LLaVA-Bench's question {name} ({number} of {len(ids)}) has no {' and no '.join(missing)}."
            )
        context, rule, *answers = parts.values()
        answer_ids = [answer.get("answer_id", answer["question_id"]) for answer in answers]
        row = {
            "id": number,
            "question_id": question["question_id"],
            "answer1_id": answer_ids[0],
            "answer2_id": answer_ids[1],
            "category": category,
        }
        texts = [answer["text"] for answer in answers]
        reviews.append(Review(row, llava_bench_prompt(question["text"], context["caption"], texts, rule)))
    return reviews


def llava_bench_prompt(question: str, caption: str | Sequence[str], answers: Sequence[str], rule: Mapping) -> str:
    """Join caption, question, the `answers` of reference and model, and the rule for questions of this category."""
    lines = caption if isinstance(caption, str) else "\n".join(caption)
    sections = [f"[Context]\n{lines}", f"[Question]\n{question}"]
    for number, answer in enumerate(answers, start=1):
        sections += [f"[{rule['role']} {number}]\n{answer}", f"[End of {rule['role']} {number}]"]
    return "\n\n".join([*sections, f"[System]\n{rule['prompt']}", ""])


def parse_scores(review: str) -> list[float]:
    """Read the scores of reference and model in a review's first line, "8 7.5" or "8,7.5"; [-1, -1] without them.

    Published numbers need exactly one space or comma between them and nothing else in the line: "8, 7.5" is none.
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        scores = [float(part) for part in parts]
    except ValueError:
        return list(FAILED)
    return scores if len(scores) == 2 and all(map(isfinite, scores)) else list(FAILED)  # "nan" is a float too


def llava_bench_score(reviews: Sequence[Mapping]) -> LLaVABenchResult:
    """Add up reviews as LLaVA's script does.

    Args:
        reviews: rows with `question_id`, `category` and `tuple`, the scores of reference and model. Of rows with the
            same id the last counts.

    Raises:
        ValueError: there are no reviews.
    """
    last = {str(review["question_id"]): review for review in reviews}
    if not last:
        raise ValueError(
            "There are no reviews to add up: let the judge answer the prompts of llava_bench_reviews first."
        )
    pairs = defaultdict(list)
    for review in last.values():
        for category in ("all", review["category"]):
            pairs[category].append(review["tuple"])
    return LLaVABenchResult(
        # Means are rounded before they are divided, and a review that failed counts -1 and -1: as published.
        {
            name: CategoryScore(*(round(fmean(scores), 3) for scores in zip(*pairs[name], strict=True)))
            for name in sorted(pairs)
        },
        failed=sum(tuple(review["tuple"]) == FAILED for review in last.values()),
    )
