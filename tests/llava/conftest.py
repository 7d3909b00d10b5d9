"""What tests of several rooms share: a small random LLaVA, and a benchmark of twelve questions about four images."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

SUFFIX = "Answer the question using a single word or phrase."


@pytest.fixture(scope="session")
def checkpoint(golden) -> str:
    return str(golden / "models/llava-v1.5-tiny")


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """(tokenizer, model, image processor); tests must leave the model as it is."""
    from llava.model.builder import load_pretrained_model

    return load_pretrained_model(checkpoint, device="cpu")[:3]


@pytest.fixture
def benchmark(tmp_path, golden):
    """The files of a TextVQA-like benchmark; several questions share an image, and so an id."""
    folder = tmp_path / "bench"
    images = folder / "train_images"
    images.mkdir(parents=True)
    questions, annotations = [], []
    for number, source in enumerate(sorted((golden / "images").glob("*.png"))):
        Image.open(source).convert("RGB").resize((160, 120)).save(images / f"image{number}.jpg")
        for asked in ("what is it?", "what word is written on the left side?", "how many of them are there?"):
            text = f"{asked}\nReference OCR token: {'A1, ' * number}B\n{SUFFIX}"
            questions.append({"question_id": f"image{number}", "image": f"image{number}.jpg", "text": text})
            annotations.append({"image_id": f"image{number}", "question": asked, "answers": ["b"] * 10})
    question_file, annotation_file = folder / "questions.jsonl", folder / "answers.json"
    question_file.write_text("".join(json.dumps(question) + "\n" for question in questions))
    annotation_file.write_text(json.dumps({"data": annotations}))
    assert len(questions) == 12
    return SimpleNamespace(
        folder=folder,
        images=images,
        questions=questions,
        question_file=question_file,
        annotation_file=annotation_file,
        flags=[
            "--question-file",
            str(question_file),
            "--image-folder",
            str(images),
            "--annotation-file",
            str(annotation_file),
            "--max-new-tokens",
            "4",
            "--device",
            "cpu",
        ],
    )


@pytest.fixture
def read_rows():
    def read(path: str | Path) -> list[dict]:
        return [json.loads(line) for line in Path(path).read_text().splitlines()]

    return read
