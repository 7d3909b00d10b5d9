"""From a benchmark's files and a model's answers to its scores by name: what joins `tasks` and `metrics`.

Each function takes the benchmark's files and rows with `question_id`, `prompt` and `text`, and raises ValueError where
they do not belong together. Only answered questions count, unless a benchmark's own script counts the others as wrong.
A part of a benchmark of which no question is answered has no score.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from llava.eval import eval_textvqa
from llava.eval.data import Data
from llava.eval.metrics import gqa, mmbench, mme, mmmu, pope, scienceqa, seed, vqa
from llava.eval.metrics.tally import Tally
from llava.eval.mmbench_file import read_rows
from llava.eval.questions import read_scienceqa
from llava.utils.files import read_bytes, read_json, read_jsonl

Rows = Sequence[Mapping]
POPE_LISTS = ("random", "popular", "adversarial")
POPE_FILES = tuple(f"coco_pope_{name}.json" for name in POPE_LISTS)


@contextmanager
def naming_files(benchmark: str, *files: Path) -> Iterator[None]:
    """Raise ValueError, which names `files`, where what reads them finds that they are not a benchmark's own."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{' or '.join(map(str, files))} is not {benchmark}'s annotation file: {error!r}.") from error


def answered_in(rows: Rows, known: Iterable, path: Path) -> set[str]:
    """The ids of the answered questions. Raises ValueError if one of them is not among the `known`, those in `path`."""
    answered, ids = {str(row["question_id"]) for row in rows}, {str(key) for key in known}
    if unknown := sorted(answered - ids):
        raise ValueError(
            f"{len(unknown)} of {len(answered)} questions are none of the {len(ids)} in {path.name}, for instance "
            f"{', '.join(unknown[:3])}. Both must be of one release."
        )
    return answered


def percent(parts: Mapping[str, Tally]) -> dict[str, float]:
    """Right answers in percent, of the parts that have questions."""
    return {name: 100 * part.accuracy for name, part in parts.items() if part.count}


def score_textvqa(data: Data, rows: Rows) -> dict[str, float]:
    return {"accuracy": 100 * eval_textvqa.evaluate(data.annotation_file, rows).accuracy}


def score_pope(data: Data, rows: Rows) -> dict[str, float]:
    """F1 of each list of objects, and the mean of them, which papers report; accuracy likewise."""
    results = pope_results(data.question_file, data.annotation_file, rows)
    parts = (("F1", "f1"), ("accuracy", "accuracy"), ("yes", "yes_ratio"))
    scores = {name: fmean(getattr(result, field) for result in results.values()) for name, field in parts}
    scores |= {f"F1 {name}": result.f1 for name, result in results.items()}
    return {name: 100 * value for name, value in scores.items()}


def pope_results(question_file: Path, annotation_folder: Path, rows: Rows) -> dict[str, pope.PopeResult]:
    """The counts of each of POPE's lists of objects of which a question is answered."""
    places: dict[str, list] = {}  # list -> its question ids, in order: true answers are known by place alone
    for line, question in read_jsonl(question_file):
        if question.get("category") not in POPE_LISTS:
            raise ValueError(f"{question_file}, line {line}: category is none of {', '.join(POPE_LISTS)}.")
        places.setdefault(question["category"], []).append(question["question_id"])
    texts = {row["question_id"]: row["text"] for row in rows}
    results = {}
    for name, ids in places.items():
        path = annotation_folder / f"coco_pope_{name}.json"
        labels = [row["label"] for _, row in read_jsonl(path)]
        if len(labels) != len(ids):
            raise ValueError(f"{path} answers {len(labels)} questions, and {question_file} has {len(ids)} of them.")
        answered = [(texts[key], label) for key, label in zip(ids, labels, strict=True) if key in texts]
        if answered:
            results[name] = pope.score(*zip(*answered, strict=True))
    if not results:
        raise ValueError(f"No answer is to a question of {question_file}.")
    return results


def score_gqa(data: Data, rows: Rows) -> dict[str, float]:
    questions = read_json(data.annotation_file)
    answered = answered_in(rows, questions.keys(), data.annotation_file)
    result = gqa.score({key: value for key, value in questions.items() if key in answered}, rows)
    return percent({"accuracy": result.overall, "binary": result.binary, "open": result.open})


def score_mme(data: Data, rows: Rows) -> dict[str, float]:
    """Points: perception of 2000, cognition of 800. "possible": of how many, where only some subtasks are answered."""
    truths = [truth for name in mme.SUBTASKS for truth in read_mme_truths(data.annotation_file / name)]
    result = mme.score(truths, rows)
    scores = {"total": result.total, "perception": result.perception, "cognition": result.cognition}
    return scores if len(result.subtasks) == len(mme.SUBTASKS) else scores | {"possible": result.possible}


def read_mme_truths(folder: Path) -> list[mme.Truth]:
    """The true answers of a subtask. They are in text files beside the images or in questions_answers_YN."""
    texts = sorted((folder / "questions_answers_YN").glob("*.txt")) or sorted(folder.glob("*.txt"))
    if not texts:
        raise ValueError(f"{folder}: no text files with true answers; MME's release has one for each image.")
    truths = []
    for path in texts:
        for number, line in enumerate(filter(str.strip, read_bytes(path).decode().splitlines()), start=1):
            question, tab, answer = line.partition("\t")
            if not tab:
                raise ValueError(f"{path}, line {number}: no tab between question and answer.")
            truths.append(mme.Truth(folder.name, path.stem, question.strip(), answer.strip()))
    return truths


def score_vqav2(data: Data, rows: Rows) -> dict[str, float]:
    """Of the validation set; as its server does, after the normalization of EvalAI."""
    annotations = read_json(data.annotation_file)["annotations"]
    answered = answered_in(rows, (row["question_id"] for row in annotations), data.annotation_file)
    annotations = [annotation for annotation in annotations if str(annotation["question_id"]) in answered]
    result = vqa.score(annotations, vqa.submission(annotations, rows))
    return {"accuracy": 100 * result.accuracy} | {kind: 100 * value for kind, value in result.answer_types.items()}


def score_vizwiz(data: Data, rows: Rows) -> dict[str, float]:
    """Of the validation set: the test set has no public answers."""
    annotations = read_json(data.annotation_file)
    answered = answered_in(rows, (row["image"] for row in annotations), data.annotation_file)
    annotations = [row for row in annotations if row["image"] in answered]
    questions = [{"question_id": annotation["image"], "image": annotation["image"]} for annotation in annotations]
    result = vqa.score_vizwiz(annotations, vqa.vizwiz_submission(questions, rows))
    return {"accuracy": 100 * result.accuracy}


def score_scienceqa(data: Data, rows: Rows) -> dict[str, float]:
    """Of questions with an image, which papers report as SQA or SQA-IMG, and of all."""
    problems = read_json(data.annotation_file)
    splits = data.annotation_file.with_name("pid_splits.json")
    split = read_json(splits)["test"]
    answered = answered_in(rows, split, splits)
    with_image = {str(q.question_id) for q in read_scienceqa(data.question_file) if q.images}
    marked = [
        {**row, "prompt": f"<image>\n{row['prompt']}" if str(row["question_id"]) in with_image else row["prompt"]}
        for row in rows
    ]
    result = scienceqa.score(problems, [key for key in split if key in answered], marked)
    return percent({"accuracy with image": result.with_image, "accuracy": result.overall})


def score_mmbench(data: Data, rows: Rows) -> dict[str, float]:
    """By letters found in the answers. A question counts if all its rotations are right; "single": if the first is."""
    table = read_rows(data.annotation_file)
    answered = answered_in(rows, (row["index"] for row in table), data.annotation_file)
    result = mmbench.score([row for row in table if row["index"] in answered], rows)
    return percent({"accuracy": result.circular, "single": result.vanilla})


def score_seed(data: Data, rows: Rows) -> dict[str, float]:
    """With video frames, as papers report it, and for images and videos apart."""
    questions = read_json(data.annotation_file)["questions"]
    answered = answered_in(rows, (question["question_id"] for question in questions), data.annotation_file)
    result = seed.score([question for question in questions if str(question["question_id"]) in answered], rows)
    return percent({"accuracy": result.overall, "image": result.image, "video": result.video})


def score_mmmu(data: Data, rows: Rows) -> dict[str, float]:
    """Of all questions alike, and of each discipline."""
    questions = [question for _, question in read_jsonl(data.annotation_file)]
    answered = answered_in(rows, (question["id"] for question in questions), data.annotation_file)
    result = mmmu.score([question for question in questions if question["id"] in answered], rows)
    return percent({"accuracy": result.overall, **result.disciplines})
