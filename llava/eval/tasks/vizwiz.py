"""VizWiz: photographs and questions of people who are blind.

https://vizwiz.org/tasks-and-datasets/vqa

`vizwiz` scores the validation set here, as the test set has no public answers; `vizwiz_test` makes the server's file.
"""

from pathlib import Path

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_json
from llava.eval.metrics import vqa
from llava.eval.questions import Question, read_entries
from llava.eval.tasks.base import Data, Rows, Submission, Task, answered_in, files, to_json_bytes
from llava.inference.instructions import SHORT
from llava.utils.files import read_json, read_jsonl


def read_vizwiz(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read VizWiz's val.json; each question is known by its image."""
    return read_entries(path, read_json(path), lambda e: (e["image"], (e["image"],), e["question"]), limit)


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy on the validation set, in percent."""
    annotations = read_json(data.answers)
    answered = answered_in(rows, (row["image"] for row in annotations), data.answers)
    annotations = [row for row in annotations if row["image"] in answered]
    questions = [{"question_id": annotation["image"], "image": annotation["image"]} for annotation in annotations]
    result = vqa.score_vizwiz(annotations, vqa.vizwiz_submission(questions, rows))
    return {"accuracy": 100 * result.accuracy}


def submit(data: Data, rows: Rows) -> bytes:
    """Make an entry for each question of the question file."""
    return to_json_bytes(vqa.vizwiz_submission([question for _, question in read_jsonl(data.question_file)], rows))


def convert(data: Data, rows: Records) -> Files:
    """Write VizWiz's val.json from the data set."""
    entries = []
    for row in rows:
        entry = {"image": save(data.image_folder, f"{Path(row['question_id']).stem}.jpg", row["image"])}
        entry |= {"question": row["question"], "answer_type": row["category"]}
        entries.append(entry | {"answers": [{"answer": answer} for answer in row["answers"]]})
    return {data.question_file: to_json(entries)}


TASKS = (
    Task(
        name="vizwiz",
        title="VizWiz",
        about="questions of people who are blind, the validation set",
        data=Data(
            Path("data/eval/vizwiz/val.json"),
            Path("data/eval/vizwiz/val"),
            Path("data/eval/vizwiz/val.json"),
            fetch=(
                "annotations and images of the validation set, unpacked to playground/data/eval/vizwiz (val.json, "
                "val): https://vizwiz.org/tasks-and-datasets/vqa",
            ),
        ),
        source=Source("VizWiz-VQA", convert, (Part("question_id question answers category image", "val"),)),
        metric=score,
        headline="accuracy",
        read=read_vizwiz,
        prompt_suffix=f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT}",
    ),
    Task(
        name="vizwiz_test",
        title="VizWiz",
        about="questions of people who are blind, a file for VizWiz's server",
        data=files(
            *("vizwiz", "llava_test.jsonl", "test", None),
            "images, unpacked to playground/data/eval/vizwiz (makes test): "
            "https://vizwiz.cs.colorado.edu/VizWiz_final/images/test.zip",
        ),
        metric=None,
        headline=None,
        submission=Submission(submit),
        elsewhere="VizWiz's test challenge is closed: its server takes the submission if another one opens. Task "
        "vizwiz scores the validation set here. https://vizwiz.org/tasks-and-datasets/vqa",
    ),
)
