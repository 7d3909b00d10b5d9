"""From the rows of a Hugging Face data set to the files of a benchmark, one function each.

Each takes the task's files and the rows of its tables, writes the images, and returns what the other files shall hold.
The columns are those that lmms-eval's tasks read. Where the files cannot equal the benchmark's own, it is said here.
"""

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from llava.eval.data import Data
from llava.eval.metrics.mmbench import LETTERS, ROTATION
from llava.eval.scores import POPE_LISTS
from llava.inference.prompts import LETTER, SHORT
from llava.utils.files import to_line, write_bytes

MME_FOLDERS = ("artwork", "celebrity", "landmark", "posters", "scene")  # these keep images and texts apart

Rows = Iterable[Mapping]
Files = dict[Path, str]  # file -> its text, in the order in which they are to be written


def save(folder: Path, name: str, image: bytes | None) -> str:
    """Write an image as it is stored, unless it is there; returns `name`.

    Raises:
        ValueError: there is no image, or `name`, which comes from the data set, leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"The data set has an image named {name!r}, which would not be in {folder}.")
    if not isinstance(image, bytes):
        raise ValueError(f"The data set has no image for {name}.")
    if not (path := folder / name).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, image)
    return name


def to_lines(rows: Iterable[dict]) -> str:
    return "".join(map(to_line, rows))


def to_json(content) -> str:
    return json.dumps(content, ensure_ascii=False)


def textvqa(data: Data, rows: Rows) -> Files:
    """Prompts in the form of LLaVA's question file, with the data set's OCR tokens: its own may differ in some."""
    questions, truths = [], []
    for row in rows:
        key = row["image_id"]
        text = f"{row['question'].capitalize()}\nReference OCR token: {', '.join(row['ocr_tokens'])}{SHORT}"
        image = save(data.image_folder, f"{key}.jpg", row["image"])
        questions.append({"question_id": key, "image": image, "text": text, "category": "default"})
        truths.append({name: row[name] for name in ("question_id", "image_id", "question", "answers")})
    return {data.annotation_file: to_json({"data": truths}), data.question_file: to_lines(questions)}


def pope(data: Data, rows: Rows) -> Files:
    questions, labels = [], {}
    for number, row in enumerate(rows):
        text, category = row["question"].strip(), row["category"]
        image = save(data.image_folder, f"{Path(row['image_source']).stem}.jpg", row["image"])
        questions.append({"question_id": number, "image": image, "text": text + SHORT, "category": category})
        known = labels.setdefault(category, [])
        label = row["answer"].strip().lower()
        known.append({"question_id": len(known) + 1, "image": image, "text": text, "label": label})
    if labels.keys() != set(POPE_LISTS):
        found = ", ".join(labels) or "none"
        raise ValueError(f"POPE has the lists {', '.join(POPE_LISTS)}; the data set's categories are {found}.")
    files = {data.annotation_file / f"coco_pope_{name}.json": to_lines(rows) for name, rows in labels.items()}
    return files | {data.question_file: to_lines(questions)}


def gqa(data: Data, images: Rows, rows: Rows) -> Files:
    for image in images:
        save(data.image_folder, f"{image['id']}.jpg", image["image"])
    questions, truths = [], {}
    for row in rows:
        text = row["question"] + SHORT
        image = f"{row['imageId']}.jpg"
        questions.append({"question_id": row["id"], "image": image, "text": text, "category": "default"})
        truths[row["id"]] = {name: row[name] for name in ("imageId", "question", "answer", "types")}
        truths[row["id"]]["isBalanced"] = True  # the data set is of these alone
    return {data.annotation_file: to_json(truths), data.question_file: to_lines(questions)}


def mme(data: Data, rows: Rows) -> Files:
    questions, truths = [], {}
    for row in rows:
        subtask, name = row["category"], Path(row["question_id"]).name
        apart = subtask in MME_FOLDERS
        image = save(data.image_folder, f"{subtask}/{'images/' * apart}{name}", row["image"])
        asked = " ".join(row["question"].split())  # a line break or tab would part the truth
        text = asked.replace("Please answer yes or no.", "").strip() + SHORT
        questions.append({"question_id": f"{subtask}/{name}", "image": image, "text": text, "category": subtask})
        folder = data.annotation_file / subtask / ("questions_answers_YN" if apart else "")
        truths.setdefault(folder / f"{Path(name).stem}.txt", []).append(f"{asked}\t{row['answer'].strip()}\n")
    return {path: "".join(lines) for path, lines in truths.items()} | {data.question_file: to_lines(questions)}


def scienceqa(data: Data, rows: Rows) -> Files:
    """The test split. The data set leaves out ScienceQA's own ids, so questions are numbered."""
    entries, problems = [], {}
    for number, row in enumerate(rows):
        key, choices = str(number), row["choices"]
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        lines = [f"Context: {row['hint']}"] * bool(row["hint"]) + [row["question"]]
        lines += [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
        entry = {"id": key}
        if row["image"]:
            entry["image"] = save(data.image_folder, f"{key}/image.png", row["image"])
            lines.insert(0, "<image>")
        answer = {"from": "gpt", "value": letters[row["answer"]]}
        entry["conversations"] = [{"from": "human", "value": "\n".join(lines)}, answer]
        entries.append(entry)
        problems[key] = {name: row[name] for name in ("question", "choices", "answer", "hint")} | {"split": "test"}
    splits = data.annotation_file.with_name("pid_splits.json")
    contents = {splits: {"test": list(problems)}, data.annotation_file: problems, data.question_file: entries}
    return {path: to_json(content) for path, content in contents.items()}


def vqav2(data: Data, rows: Rows) -> Files:
    questions, truths = [], []
    for row in rows:
        save(data.image_folder, f"COCO_val2014_{row['image_id']:012d}.jpg", row["image"])
        questions.append({name: row[name] for name in ("image_id", "question", "question_id")})
        known = ("image_id", "question_id", "question_type", "answer_type", "answers")
        truths.append({name: row[name] for name in known})
    contents = {data.annotation_file: {"annotations": truths}, data.question_file: {"questions": questions}}
    return {path: to_json({"data_subtype": "val2014", **content}) for path, content in contents.items()}


def vizwiz(data: Data, rows: Rows) -> Files:
    entries = []
    for row in rows:
        entry = {"image": save(data.image_folder, f"{Path(row['question_id']).stem}.jpg", row["image"])}
        entry |= {"question": row["question"], "answer_type": row["category"]}
        entries.append(entry | {"answers": [{"answer": answer} for answer in row["answers"]]})
    return {data.question_file: to_json(entries)}


def mmbench(data: Data, rows: Rows) -> Files:
    """A TSV file with the images in it, each once: rotations name the row that has it.

    The data set is of a later release than the file that LLaVA's scripts name, so some questions differ.
    """
    columns = ("index", "question", "hint", *LETTERS, "answer", "category", "l2-category", "source", "image")
    text, seen = io.StringIO(), set()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        first = row["index"] % ROTATION
        image = first if first in seen else base64.b64encode(row["image"]).decode()
        seen.add(row["index"])
        writer.writerow({**row, "image": image, "l2-category": row["L2-category"]})
    return {data.question_file: text.getvalue()}


def seed(data: Data, rows: Rows) -> Files:
    """Of a video the frame in the middle of its eight; LLaVA's were taken out of the videos, so they may differ."""
    questions, truths = [], []
    for row in rows:
        kind, key = row["data_type"], row["question_id"]
        name = f"SEED-Bench-image/{row['data_id']}" if kind == "image" else f"SEED-Bench-video-image/{key}.png"
        image = save(data.image_folder, name, row["image"][len(row["image"]) // 2])
        options = "".join(f"\n{letter}. {row[f'choice_{letter.lower()}']}" for letter in LETTERS)
        text = row["question"] + options + LETTER
        questions.append({"question_id": key, "image": image, "text": text, "category": kind})
        truths.append({name: row[name] for name in ("question_id", "question_type_id", "data_type", "answer")})
    return {data.annotation_file: to_json({"questions": truths}), data.question_file: to_lines(questions)}


def mmmu(data: Data, rows: Rows) -> Files:
    entries = []
    for row in rows:
        images = {name: image for name, image in row.items() if name.startswith("image_") and image}
        names = {name: save(data.image_folder, f"{row['id']}_{name[-1]}.png", images[name]) for name in images}
        entries.append({name: row[name] for name in ("id", "question", "options", "answer", "question_type")} | names)
    return {data.question_file: to_lines(entries)}


def mmvet(data: Data, rows: Rows) -> Files:
    questions, truths = [], {}
    for row in rows:
        number = str(row["question_id"]).removeprefix("v1_")
        image = save(data.image_folder, f"v1_{number}.png", row["image"])
        questions.append({"question_id": int(number), "image": image, "text": row["question"]})
        known = {"imagename": image, "question": row["question"], "answer": row["answer"]}
        truths[f"v1_{number}"] = known | {"capability": row["capability"].split(",")}
    return {data.annotation_file: to_json(truths), data.question_file: to_lines(questions)}


def llava_bench(data: Data, rows: Rows) -> Files:
    questions, references, contexts = [], [], {}
    for row in rows:
        key = row["question_id"]
        image = save(data.image_folder, f"{Path(str(row['image_id'])).stem}.jpg", row["image"])
        questions.append({"question_id": key, "image": image, "text": row["question"], "category": row["category"]})
        references.append({"question_id": key, "text": row["gpt_answer"]})
        contexts[image] = {"image": image, "caption": row["caption"]}
    return {
        data.question_file.with_name("context.jsonl"): to_lines(contexts.values()),
        data.annotation_file: to_lines(references),
        data.question_file: to_lines(questions),
    }
