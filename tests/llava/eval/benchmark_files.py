"""Makes tiny sets of the benchmarks: in their native files, in LLaVA's layout, and as data sets of the hub."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write(path: Path, content) -> None:
    """A list as JSONL where the file is one, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(content, list) and (path.suffix == ".jsonl" or path.name.startswith("coco_pope"))
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))


def stored_picture(number: int, kind: str = "JPEG") -> dict:
    """An image as a data set stores it."""
    content = io.BytesIO()
    Image.new("RGB", (16, 12), (number * 20 % 256, 40, 90)).save(content, kind)
    return {"bytes": content.getvalue(), "path": f"{number}.{kind.lower()}"}


def to_dataset(rows: list[dict]):
    """A table with these rows; columns of images are such."""
    import datasets

    table = datasets.Dataset.from_list(rows)
    for name in rows[0]:
        if name.startswith("image") and name not in ("image_id", "image_source", "imageId"):
            feature = datasets.Image()
            table = table.cast_column(name, datasets.List(feature) if isinstance(rows[0][name], list) else feature)
    return table


def write_data_set(source, tables: list[list[dict]], folder: Path) -> Path:
    """Parquet files in the hub's layout: rows for each of the source's parts."""
    for part, rows in zip(source.parts, tables, strict=True):
        place = folder / (part.config or "data")
        place.mkdir(parents=True)
        to_dataset(rows).to_parquet(place / f"{part.split}-00000-of-00001.parquet")
    return folder


def make_pope(root: Path) -> None:
    """Two images, a yes and a no about each, in three lists."""
    folder, questions = root / "pope", []
    for name in ("random", "popular", "adversarial"):
        labels = []
        for image, thing, label in ((0, "dog", "yes"), (0, "cat", "no"), (1, "car", "yes"), (1, "bus", "no")):
            file, text = f"COCO_val2014_{image:012d}.jpg", f"Is there a {thing} in the image?"
            picture(folder / "val2014" / file, image)
            labels.append({"question_id": len(labels) + 1, "image": file, "text": text, "label": label})
            question = {"question_id": len(questions), "image": file, "text": f"{text}\n{SHORT}", "category": name}
            questions.append(question)
        write(folder / "coco" / f"coco_pope_{name}.json", labels)
    write(folder / "llava_pope_test.jsonl", questions)


def make_gqa(root: Path) -> None:
    folder, questions, truths = root / "gqa", [], {}
    kinds = (("verify", "yes"), ("query", "table"), ("choose", "left"), ("query", "dog"))
    for number, (structural, answer) in enumerate(kinds):
        picture(folder / "data/images" / f"n{number // 2}.jpg", number // 2)
        text = f"What about number {number}?\n{SHORT}"
        key = f"20{number}"
        questions.append({"question_id": key, "image": f"n{number // 2}.jpg", "text": text, "category": "default"})
        types = {"structural": structural, "semantic": "attr", "detailed": "any"}
        truths[key] = {"answer": answer, "isBalanced": True, "types": types, "imageId": f"n{number // 2}"}
    truths["999"] = {**truths["200"], "isBalanced": False}  # not asked
    write(folder / "llava_gqa_testdev_balanced.jsonl", questions)
    write(folder / "data/testdev_balanced_questions.json", truths)


def make_mme(root: Path) -> None:
    """One image in each of the fourteen subtasks; five of them keep images and texts in folders of their own."""
    from llava.eval.metrics.mme import SUBTASKS

    folder, questions = root / "MME", []
    for number, subtask in enumerate(SUBTASKS):
        base, apart = folder / "MME_Benchmark_release_version" / subtask, number % 3 == 0
        image = Path(subtask) / ("images" if apart else "") / f"{number:04d}.png"
        picture(folder / "MME_Benchmark_release_version" / image, number)
        texts = [f"Is this {number}? Please answer yes or no.", f"Is this {number + 1}?  Please answer yes or no."]
        truths = base / ("questions_answers_YN" if apart else "") / f"{number:04d}.txt"
        truths.parent.mkdir(parents=True, exist_ok=True)
        truths.write_text("".join(f"{text}\t{answer}\n" for text, answer in zip(texts, ("Yes", "No"), strict=True)))
        for text in texts:
            asked = text.replace("  ", " ").replace(" Please answer yes or no.", f"\n{SHORT}")
            key = f"{subtask}/{number:04d}.png"
            questions.append({"question_id": key, "image": str(image), "text": asked, "category": subtask})
    write(folder / "llava_mme.jsonl", questions)


def make_scienceqa(root: Path) -> None:
    """Three questions, the second without an image; one of another split."""
    folder, entries, problems = root / "scienceqa", [], {}
    for number, answer in enumerate((1, 0, 1)):
        key, options = str(10 + number), "A. up\nB. down"
        entry = {"id": key, "conversations": [{"from": "human", "value": f"Which way is {number}?\n{options}"}]}
        if number != 1:
            picture(folder / "images/test" / key / "image.png", number)
            entry["image"] = f"{key}/image.png"
            entry["conversations"][0]["value"] = "<image>\n" + entry["conversations"][0]["value"]
        entry["conversations"].append({"from": "gpt", "value": "AB"[answer]})
        entries.append(entry)
        problems[key] = {"choices": ["up", "down"], "answer": answer, "split": "test"}
    problems["99"] = {"choices": ["up", "down"], "answer": 0, "split": "train"}
    write(folder / "llava_test_CQM-A.json", entries)
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"train": ["99"], "test": ["10", "11", "12"]})


def make_vqav2(root: Path) -> None:
    folder, questions, truths = root / "vqav2", [], []
    for number, (answer, kind) in enumerate((("yes", "yes/no"), ("2", "number"), ("red", "other"), ("blue", "other"))):
        picture(folder / "val2014" / f"COCO_val2014_{number // 2:012d}.jpg", number // 2)
        key = {"image_id": number // 2, "question_id": 1000 + number}
        questions.append({**key, "question": f"What about {number}?"})
        answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
        truths.append({**key, "question_type": "what", "answer_type": kind, "answers": answers})
    names = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    write(folder / names[0], {"data_subtype": "val2014", "questions": questions})
    write(folder / names[1], {"data_subtype": "val2014", "annotations": truths})


def make_vizwiz(root: Path) -> None:
    folder, entries = root / "vizwiz", []
    for number, answer in enumerate(("can", "unanswerable", "soup")):
        file = f"VizWiz_val_{number:08d}.jpg"
        picture(folder / "val" / file, number)
        answers = [{"answer": answer, "answer_confidence": "yes"}] * 10
        kind = {"answer_type": "unanswerable" if number == 1 else "other", "answerable": int(number != 1)}
        entries.append({"image": file, "question": f"What is {number}?", "answers": answers, **kind})
    write(folder / "val.json", entries)


def make_mmbench(root: Path, name: str = "mmbench_dev_20230712", seed: int = 0) -> None:
    """Two questions in two rotations each, the second with a hint; rotations name the row that holds the image."""
    rows = []
    for number, (options, answer) in enumerate(((("red", "blue"), "A"), (("up", "down"), "B"))):
        for turn in range(2):
            turned = options[::-1] if turn else options
            right = {"A": "B", "B": "A"}[answer] if turn else answer
            row = {"index": number + turn * 1_000_000, "question": f"What is {number}?", "answer": right}
            row |= {"hint": "Look up." if number else "", "A": turned[0], "B": turned[1], "C": "", "D": ""}
            content = io.BytesIO()
            noise = np.random.default_rng(number + seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(noise).save(content, "JPEG")
            encoded = base64.b64encode(content.getvalue()).decode()
            rows.append(row | {"category": "colour", "l2-category": "look", "image": number if turn else encoded})
    path = root / "mmbench" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def make_mmbench_cn(root: Path) -> None:
    make_mmbench(root, "mmbench_dev_cn_20231003")


def make_seed(root: Path) -> None:
    """Two questions about an image, one about a frame of a video."""
    folder, questions, truths = root / "seed_bench", [], []
    for number, (kind, answer) in enumerate((("image", "A"), ("image", "B"), ("video", "C"))):
        file = f"SEED-Bench-{'image' if kind == 'image' else 'video-image'}/{kind}_{number}.png"
        picture(folder / file, number)
        key = f"v{number}" if kind == "video" else str(number)
        text = f"What is {number}?\nA. a\nB. b\nC. c\nD. d\n{LETTER}"
        questions.append({"question_id": key, "image": file, "text": text, "category": kind})
        kind_id = 10 if kind == "video" else 1
        truths.append({"question_id": key, "question_type_id": kind_id, "data_type": kind, "answer": answer})
    names = {"Scene Understanding": 1, "Action Recognition": 10}
    write(folder / "llava-seed-bench.jsonl", questions)
    write(folder / "SEED-Bench.json", {"questions": truths, "question_type": names})


def make_mmmu(root: Path, copies: int = 1) -> None:
    """Choices about one image, about two, and between two, and an open question; some images nobody asks for."""
    folder, rows = root / "mmmu", []
    kinds = (
        ("Art_Theory", "What is 0 in <image 1>?", ["red", "blue"], "A"),
        ("Math", "Is 1 in <image 2> or in <image 1>?", ["yes", "no", "neither"], "A"),
        ("Math", "What is 2 plus <image 1>?", [], "12"),
        ("History", "Which is 3?", ["<image 2>", "<image 1>"], "B"),
    )
    for number, (subject, question, options, answer) in enumerate(kinds * copies):
        key = f"validation_{subject}_{number + 1}"
        row = {"id": key, "question": question, "options": str(options), "answer": answer}
        row["question_type"] = "multiple-choice" if options else "open"
        for place in (1, 2) if number else (1, 2, 3):
            row[f"image_{place}"] = f"{key}_{place}.png"
            picture(folder / "images" / row[f"image_{place}"], 10 * number + place)
        rows.append(row | {"subfield": "Any", "topic_difficulty": "Easy"})
    write(folder / "validation.jsonl", rows)


def make_vqav2_test(root: Path) -> None:
    """Three questions of test-dev, and of the whole test set, which has one more, for the server."""
    folder, questions = root / "vqav2", []
    for number in range(4):
        file = f"COCO_test2015_{number:012d}.jpg"
        picture(folder / "test2015" / file, number)
        text = f"What about number {number}?\n{SHORT}"
        questions.append({"question_id": 2000 + number, "image": file, "text": text, "category": "default"})
    write(folder / "llava_vqav2_mscoco_test2015.jsonl", questions)
    write(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", questions[1:])


def make_vizwiz_test(root: Path) -> None:
    folder, questions = root / "vizwiz", []
    for number in range(3):
        file = f"VizWiz_test_{number:08d}.jpg"
        picture(folder / "test" / file, number)
        lines = (
            f"What is {number}?",
            "When the provided information is insufficient, respond with 'Unanswerable'.",
            SHORT,
        )
        questions.append({"question_id": file, "image": file, "text": "\n".join(lines), "category": "default"})
    write(folder / "llava_test.jsonl", questions)


def make_mmvet(root: Path, folder: str = "mm-vet") -> None:
    """Three questions, each of which needs recognition and something else."""
    questions, truths = [], {}
    for number, (other, answer) in enumerate((("ocr", "stop"), ("math", "1<AND>2"), ("gen", "a<OR>b"))):
        picture(root / folder / "images" / f"v1_{number}.png", number)
        text = f"What about {number}?"
        questions.append({"question_id": number, "image": f"v1_{number}.png", "text": text, "category": "default"})
        truth = {"imagename": f"v1_{number}.png", "question": text, "answer": answer, "capability": ["rec", other]}
        truths[f"v1_{number}"] = truth | {"imagesource": "internet"}
    write(root / folder / "llava-mm-vet.jsonl", questions)
    write(root / folder / "mm-vet.json", truths)


def make_llava_bench(root: Path) -> None:
    """A question of each category; the first two about one image."""
    folder, questions, contexts, references = root / "llava-bench-in-the-wild", [], [], []
    for number, category in enumerate(("conv", "detail", "complex")):
        image = f"00{1 + number // 2}.jpg"
        picture(folder / "images" / image, number // 2)
        text = f"What about {number}?"
        questions.append({"question_id": number, "image": image, "category": category, "text": text})
        reference = {"question_id": number, "prompt": text, "answer_id": f"r{number}", "text": f"It is {number}."}
        references.append(reference | {"model_id": "gpt-4", "metadata": {}})
    for image in ("001", "002"):
        contexts.append({"id": image, "image": f"{image}.jpg", "caption": [f"Picture {image}.", "Two lines."]})
    write(folder / "questions.jsonl", questions)
    write(folder / "context.jsonl", contexts)
    write(folder / "answers_gpt4.jsonl", references)


MAKERS = {
    "pope": make_pope,
    "gqa": make_gqa,
    "mme": make_mme,
    "scienceqa": make_scienceqa,
    "vqav2": make_vqav2,
    "vizwiz": make_vizwiz,
    "mmbench": make_mmbench,
    "mmbench_cn": make_mmbench_cn,
    "seed": make_seed,
    "mmmu": make_mmmu,
}
UNSCORED = {  # by servers and judges
    "vqav2_test": make_vqav2_test,
    "vizwiz_test": make_vizwiz_test,
    "mmvet": make_mmvet,
    "llava_bench": make_llava_bench,
}
