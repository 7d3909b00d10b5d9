"""VQAv2: questions about COCO images, ten reference answers each.

https://visualqa.org

`vqav2` scores the validation set here; `vqav2_test` makes the file for the server, which alone knows the answers.
"""

from pathlib import Path

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_json
from llava.eval.metrics import vqa
from llava.eval.questions import Fields, Question, read_entries
from llava.eval.tasks.base import Data, Rows, Submission, Task, answered_in, files, to_json_bytes
from llava.inference.instructions import SHORT
from llava.utils.files import read_json, read_jsonl


def read_vqav2(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read v2_OpenEnded_mscoco_val2014_questions.json, VQAv2's own file."""
    content = read_json(path)
    try:
        entries, subset = content["questions"], content["data_subtype"]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: no questions and data_subtype, as VQAv2's own files have them.") from None

    def fields(entry: dict) -> Fields:
        return entry["question_id"], (f"COCO_{subset}_{entry['image_id']:012d}.jpg",), entry["question"]

    return read_entries(path, entries, fields, limit)


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy on the validation set as the server does, after the normalization of EvalAI."""
    annotations = read_json(data.answers)["annotations"]
    answered = answered_in(rows, (row["question_id"] for row in annotations), data.answers)
    annotations = [annotation for annotation in annotations if str(annotation["question_id"]) in answered]
    result = vqa.score(annotations, vqa.submission(annotations, rows))
    return {"accuracy": 100 * result.accuracy} | {kind: 100 * value for kind, value in result.answer_types.items()}


def submit(data: Data, rows: Rows) -> bytes:
    """Make an entry for each question of the annotation file, which has those of the whole test set."""
    return to_json_bytes(vqa.submission([question for _, question in read_jsonl(data.answers)], rows))


def convert(data: Data, rows: Records) -> Files:
    """Write VQAv2's two files from the data set."""
    questions, truths = [], []
    for row in rows:
        save(data.image_folder, f"COCO_val2014_{row['image_id']:012d}.jpg", row["image"])
        questions.append({name: row[name] for name in ("image_id", "question", "question_id")})
        known = ("image_id", "question_id", "question_type", "answer_type", "answers")
        truths.append({name: row[name] for name in known})
    contents = {data.answers: {"annotations": truths}, data.question_file: {"questions": questions}}
    return {path: to_json({"data_subtype": "val2014", **content}) for path, content in contents.items()}


TASKS = (
    Task(
        name="vqav2",
        title="VQAv2",
        about="open questions about photographs, the validation set",
        data=Data(
            Path("data/eval/vqav2/v2_OpenEnded_mscoco_val2014_questions.json"),
            Path("data/eval/vqav2/val2014"),
            Path("data/eval/vqav2/v2_mscoco_val2014_annotations.json"),
            fetch=(
                "questions and answers of the validation set, unpacked to playground/data/eval/vqav2: "
                "https://visualqa.org/download.html",
                "images, unpacked to playground/data/eval/vqav2 (makes val2014): "
                "http://images.cocodataset.org/zips/val2014.zip",
            ),
        ),
        source=Source(
            "VQAv2",
            convert,
            (Part("question_id image_id question question_type answer_type answers image", "validation"),),
        ),
        metric=score,
        headline="accuracy",
        read=read_vqav2,
        prompt_suffix=SHORT,
        paper="VQAv2",
        note="VQAv2: the validation set here, the server's test-dev in the paper; do not compare them.",
    ),
    Task(
        name="vqav2_test",
        title="VQAv2",
        about="open questions about photographs, a file for VQAv2's server",
        data=files(
            "vqav2",
            "llava_vqav2_mscoco_test-dev2015.jsonl",
            "test2015",
            "llava_vqav2_mscoco_test2015.jsonl",  # its server wants an entry for each of these
            "images, unpacked to playground/data/eval/vqav2 (makes test2015): "
            "http://images.cocodataset.org/zips/test2015.zip",
        ),
        metric=None,
        headline=None,
        submission=Submission(submit),
        elsewhere="VQAv2's server scores the submission: "
        "https://eval.ai/web/challenges/challenge-page/830/my-submission",
    ),
)
