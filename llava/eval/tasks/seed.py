"""SEED-Bench: multiple choice on images and video frames.

https://github.com/AILab-CVLab/SEED-Bench
"""

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_json, to_lines
from llava.eval.metrics import seed
from llava.eval.metrics.mmbench import LETTERS
from llava.eval.tasks.base import Data, Rows, Task, answered_in, files, percent
from llava.inference.instructions import LETTER
from llava.utils.files import read_json

COLUMNS = "question_id data_id data_type question_type_id question choice_a choice_b choice_c choice_d answer image"


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy with video frames, as papers report it, and of images and videos apart; in percent."""
    questions = read_json(data.answers)["questions"]
    answered = answered_in(rows, (question["question_id"] for question in questions), data.answers)
    result = seed.score([question for question in questions if str(question["question_id"]) in answered], rows)
    return percent({"accuracy": result.overall, "image": result.image, "video": result.video})


def convert(data: Data, rows: Records) -> Files:
    """Write LLaVA's files from the data set.

    Of a video it takes the frame in the middle of its eight; LLaVA's were taken out of the videos, so they may differ.
    """
    questions, truths = [], []
    for row in rows:
        kind, key = row["data_type"], row["question_id"]
        name = f"SEED-Bench-image/{row['data_id']}" if kind == "image" else f"SEED-Bench-video-image/{key}.png"
        image = save(data.image_folder, name, row["image"][len(row["image"]) // 2])
        options = "".join(f"\n{letter}. {row[f'choice_{letter.lower()}']}" for letter in LETTERS)
        text = row["question"] + options + LETTER
        questions.append({"question_id": key, "image": image, "text": text, "category": kind})
        truths.append({name: row[name] for name in ("question_id", "question_type_id", "data_type", "answer")})
    return {data.answers: to_json({"questions": truths}), data.question_file: to_lines(questions)}


TASKS = (
    Task(
        name="seed",
        title="SEED-Bench",
        about="multiple choice on images and video frames",
        data=files(
            *("seed_bench", "llava-seed-bench.jsonl", ".", "SEED-Bench.json"),
            "answers, images and video frames to playground/data/eval/seed_bench (SEED-Bench.json, "
            "SEED-Bench-image, SEED-Bench-video-image): https://github.com/AILab-CVLab/SEED-Bench",
        ),
        source=Source("SEED-Bench", convert, (Part(COLUMNS, "test"),)),
        metric=score,
        headline="accuracy",
        paper="SEED",
        note="SEED-Bench: with video frames, as in the paper.",
    ),
)
