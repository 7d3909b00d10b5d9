"""ChartQA: questions about charts, written by people and by a machine.

https://github.com/vis-nlp/ChartQA

Asked and scored as by lmms-eval's task `chartqa`.
"""

from pathlib import Path

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save_unnamed, to_json
from llava.eval.metrics.tally import tally, tally_by
from llava.eval.questions import Fields, Question, read_entries
from llava.eval.tasks.base import Data, Rows, Task, answered_in, percent
from llava.utils.files import read_json

PARTS = ("human", "augmented")  # each in a file of its own, test_PART.json
TOLERANCE = 0.05  # of the reference, for numbers
WORD = "\nAnswer the question with a single word."


def read_chartqa(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read test_human.json and the test_augmented.json next to it: lists of `imgname`, `query` and `label`."""
    return read_entries(path, entries_in(Path(path)), question_of, limit)


def entries_in(path: Path) -> list[dict]:
    """Collect the entries of both parts, each with its part and an id, which ChartQA's files leave out."""
    entries = []
    for part in PARTS:
        content = read_json(path.with_name(f"test_{part}.json"))
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{path.with_name(f'test_{part}.json')}: no list of questions, as ChartQA's files are.")
        entries += [{**entry, "part": part, "id": f"{part}-{number}"} for number, entry in enumerate(content)]
    return entries


def question_of(entry: dict) -> Fields:
    """Find id, image and text of an entry."""
    return entry["id"], (entry["imgname"],), entry["query"]


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the relaxed accuracy of all questions, and of those by people and by a machine; in percent."""
    entries = entries_in(data.question_file)
    answered = answered_in(rows, (entry["id"] for entry in entries), data.question_file)
    texts = {str(row["question_id"]): row["text"] for row in rows}
    outcomes = [
        (entry["part"], matches(texts[entry["id"]], str(entry["label"])))
        for entry in entries
        if entry["id"] in answered
    ]
    return percent({"accuracy": tally(right for _, right in outcomes), **tally_by(outcomes)})


def matches(answer: str, reference: str) -> bool:
    """Compare as ChartQA does (arXiv 2203.10244, section 5.1): numbers may be 5 % off, texts are equal but for case."""
    said, true = to_number(answer), to_number(reference)
    if said is not None and true:
        return abs(said - true) <= TOLERANCE * abs(true)
    return answer.strip().lower() == reference.strip().lower()


def to_number(text: str) -> float | None:
    """Read a number, or a percentage as a share of 1; None if the text is neither."""
    text = text.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def convert(data: Data, rows: Records) -> Files:
    """Write ChartQA's two files from the data set. It leaves out the names of images, so they are made up here."""
    entries = {part: [] for part in PARTS}
    for row in rows:
        entry = {"imgname": save_unnamed(data.image_folder, row["image"]), "query": row["question"]}
        entries["human" if row["type"].startswith("human") else "augmented"].append(entry | {"label": row["answer"]})
    return {data.question_file.with_name(f"test_{part}.json"): to_json(entries[part]) for part in reversed(PARTS)}


TASKS = (
    Task(
        name="chartqa",
        title="ChartQA",
        about="questions about charts",
        data=Data(
            Path("data/eval/chartqa/test/test_human.json"),
            Path("data/eval/chartqa/test/png"),
            Path("data/eval/chartqa/test/test_augmented.json"),
            fetch=(
                "the folder test of ChartQA Dataset (test_human.json, test_augmented.json, png) to "
                "playground/data/eval/chartqa: https://github.com/vis-nlp/ChartQA",
            ),
        ),
        source=Source("ChartQA", convert, (Part("question answer type image", "test"),), whole=True),
        metric=score,
        headline="accuracy",
        read=read_chartqa,
        prompt_suffix=WORD,
        note="ChartQA: relaxed accuracy of all questions; those by people and by a machine are as many.",
    ),
)
