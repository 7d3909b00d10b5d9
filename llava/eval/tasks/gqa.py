"""GQA: questions about scene graphs, test-dev balanced.

https://cs.stanford.edu/people/dorarad/gqa
"""

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_json, to_lines
from llava.eval.metrics import gqa
from llava.eval.tasks.base import Data, Rows, Task, answered_in, files, percent
from llava.inference.instructions import SHORT
from llava.utils.files import read_json

SOURCE_PARTS = (
    Part("id image", "testdev", "testdev_balanced_images"),
    Part("id imageId question answer types", "testdev", "testdev_balanced_instructions"),
)


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy of all, of binary and of open questions, in percent."""
    questions = read_json(data.answers)
    answered = answered_in(rows, questions.keys(), data.answers)
    result = gqa.score({key: value for key, value in questions.items() if key in answered}, rows)
    return percent({"accuracy": result.overall, "binary": result.binary, "open": result.open})


def convert(data: Data, images: Records, rows: Records) -> Files:
    """Write GQA's questions and LLaVA's question file from the data set's two tables."""
    for image in images:
        save(data.image_folder, f"{image['id']}.jpg", image["image"])
    questions, truths = [], {}
    for row in rows:
        text = row["question"] + SHORT
        image = f"{row['imageId']}.jpg"
        questions.append({"question_id": row["id"], "image": image, "text": text, "category": "default"})
        truths[row["id"]] = {name: row[name] for name in ("imageId", "question", "answer", "types")}
        truths[row["id"]]["isBalanced"] = True  # the data set is of these alone
    return {data.answers: to_json(truths), data.question_file: to_lines(questions)}


TASKS = (
    Task(
        name="gqa",
        title="GQA",
        about="objects, attributes and relations in photographs",
        data=files(
            *("gqa", "llava_gqa_testdev_balanced.jsonl", "data/images", "data/testdev_balanced_questions.json"),
            "answers and images, questions and images unpacked to playground/data/eval/gqa/data: "
            "https://cs.stanford.edu/people/dorarad/gqa/download.html",
            spellings=("gqa/data", "gqa"),
        ),
        source=Source("GQA", convert, SOURCE_PARTS),
        metric=score,
        headline="accuracy",
        paper="GQA",
    ),
)
