"""TextVQA: words in photographs, ten reference answers each.

https://textvqa.org
"""

from llava.eval import eval_textvqa
from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_json, to_lines
from llava.eval.tasks.base import Data, Rows, Task, files, signs
from llava.inference.instructions import SHORT


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy, in percent."""
    return {"accuracy": 100 * eval_textvqa.evaluate(data.answers, rows).accuracy}


def convert(data: Data, rows: Records) -> Files:
    """Write LLaVA's files from the data set, with its OCR tokens: LLaVA's own may differ in some."""
    questions, truths = [], []
    for row in rows:
        key = row["image_id"]
        text = f"{row['question'].capitalize()}\nReference OCR token: {', '.join(row['ocr_tokens'])}{SHORT}"
        image = save(data.image_folder, f"{key}.jpg", row["image"])
        questions.append({"question_id": key, "image": image, "text": text, "category": "default"})
        truths.append({name: row[name] for name in ("question_id", "image_id", "question", "answers")})
    return {data.answers: to_json({"data": truths}), data.question_file: to_lines(questions)}


TASKS = (
    Task(
        name="textvqa",
        title="TextVQA",
        about="words in photographs, with OCR tokens in the prompt",
        data=files(
            *("textvqa", "llava_textvqa_val_v051_ocr.jsonl", "train_images", "TextVQA_0.5.1_val.json"),
            "answers, to playground/data/eval/textvqa: "
            "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json",
            "images, unpacked to playground/data/eval/textvqa (makes train_images): "
            "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
        ),
        embedded=signs("llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"),
        source=Source(
            "textvqa", convert, (Part("question_id image_id question answers ocr_tokens image", "validation"),)
        ),
        metric=score,
        headline="accuracy",
        paper="TextVQA",
        note="TextVQA: the paper asks with LLaVA's reference OCR tokens (llava_textvqa_val_v051_ocr.jsonl).",
    ),
)
