"""MME: two yes-or-no questions per image, fourteen subtasks of perception and cognition.

https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models
"""

from pathlib import Path

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_lines
from llava.eval.metrics import mme
from llava.eval.tasks.base import Data, Rows, Task, files
from llava.inference.instructions import SHORT
from llava.utils.files import read_bytes

APART = ("artwork", "celebrity", "landmark", "posters", "scene")  # these keep images and texts in folders of their own


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute points: perception of 2000, cognition of 800.

    "possible" says of how many, where only some subtasks are answered.
    """
    truths = [truth for name in mme.SUBTASKS for truth in read_truths(data.answers / name)]
    result = mme.score(truths, rows)
    scores = {"total": result.total, "perception": result.perception, "cognition": result.cognition}
    return scores if len(result.subtasks) == len(mme.SUBTASKS) else scores | {"possible": result.possible}


def read_truths(folder: Path) -> list[mme.Truth]:
    """Read the true answers of a subtask, from text files next to the images or in questions_answers_YN."""
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


def convert(data: Data, rows: Records) -> Files:
    """Write MME's folders and LLaVA's question file from the data set."""
    questions, truths = [], {}
    for row in rows:
        subtask, name = row["category"], Path(row["question_id"]).name
        apart = subtask in APART
        image = save(data.image_folder, f"{subtask}/{'images/' * apart}{name}", row["image"])
        asked = " ".join(row["question"].split())  # a line break or tab would part the truth
        text = asked.replace("Please answer yes or no.", "").strip() + SHORT
        questions.append({"question_id": f"{subtask}/{name}", "image": image, "text": text, "category": subtask})
        folder = data.answers / subtask / ("questions_answers_YN" if apart else "")
        truths.setdefault(folder / f"{Path(name).stem}.txt", []).append(f"{asked}\t{row['answer'].strip()}\n")
    return {path: "".join(lines) for path, lines in truths.items()} | {data.question_file: to_lines(questions)}


TASKS = (
    Task(
        name="mme",
        title="MME",
        about="perception and cognition, yes or no",
        data=files(
            *("MME", "llava_mme.jsonl", "MME_Benchmark_release_version", "MME_Benchmark_release_version"),
            "images with answers, unpacked to playground/data/eval/MME (makes MME_Benchmark_release_version): "
            "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
        ),
        source=Source("MME", convert, (Part("question_id category question answer image", "test"),)),
        metric=score,
        headline="total",
        unit="points",
        paper="MME",
        note="MME: perception + cognition, of 2800.",
    ),
)
