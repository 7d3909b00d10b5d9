"""POPE: is an object in the picture, yes or no, of objects drawn in three ways.

https://github.com/AoiDragon/POPE
"""

from pathlib import Path
from statistics import fmean

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_lines
from llava.eval.metrics import pope
from llava.eval.tasks.base import Data, Rows, Task, files, signs
from llava.inference.instructions import SHORT
from llava.utils.files import read_jsonl

LISTS = ("random", "popular", "adversarial")
ANSWERS = tuple(f"coco_pope_{name}.json" for name in LISTS)


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute F1 of each list of objects, and the mean of them, which papers report; accuracy likewise. In percent."""
    results = results_by_list(data.question_file, data.answers, rows)
    parts = (("F1", "f1"), ("accuracy", "accuracy"), ("yes", "yes_ratio"))
    scores = {name: fmean(getattr(result, field) for result in results.values()) for name, field in parts}
    scores |= {f"F1 {name}": result.f1 for name, result in results.items()}
    return {name: 100 * value for name, value in scores.items()}


def results_by_list(question_file: Path, annotation_folder: Path, rows: Rows) -> dict[str, pope.PopeResult]:
    """Count right and wrong answers to each of POPE's lists of objects of which a question is answered."""
    places: dict[str, list] = {}  # list -> its question ids, in order: true answers are known by place alone
    for line, question in read_jsonl(question_file):
        if question.get("category") not in LISTS:
            raise ValueError(f"{question_file}, line {line}: category is none of {', '.join(LISTS)}.")
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


def convert(data: Data, rows: Records) -> Files:
    """Write POPE's lists and LLaVA's question file from the data set."""
    questions, labels = [], {}
    for number, row in enumerate(rows):
        text, category = row["question"].strip(), row["category"]
        image = save(data.image_folder, f"{Path(row['image_source']).stem}.jpg", row["image"])
        questions.append({"question_id": number, "image": image, "text": text + SHORT, "category": category})
        known = labels.setdefault(category, [])
        label = row["answer"].strip().lower()
        known.append({"question_id": len(known) + 1, "image": image, "text": text, "label": label})
    if labels.keys() != set(LISTS):
        found = ", ".join(labels) or "none"
        raise ValueError(f"POPE has the lists {', '.join(LISTS)}; the data set's categories are {found}.")
    texts = {data.answers / f"coco_pope_{name}.json": to_lines(rows) for name, rows in labels.items()}
    return texts | {data.question_file: to_lines(questions)}


TASKS = (
    Task(
        name="pope",
        title="POPE",
        about="whether an object is there, yes or no",
        data=files(
            *("pope", "llava_pope_test.jsonl", "val2014", "coco"),
            "answers, coco_pope_{random,popular,adversarial}.json to playground/data/eval/pope/coco: "
            "https://github.com/AoiDragon/POPE/tree/main/output/coco",
            "images, unpacked to playground/data/eval/pope (makes val2014): "
            "http://images.cocodataset.org/zips/val2014.zip",
            also=ANSWERS,
        ),
        embedded=signs("llava_pope_test.jsonl", "coco", ANSWERS),
        source=Source("POPE", convert, (Part("question answer category image_source image", "test"),), whole=True),
        metric=score,
        headline="F1",
        paper="POPE",
        note="POPE: F1, the mean of its three lists.",
    ),
)
