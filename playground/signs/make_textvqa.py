"""Write an evaluation set of sign scenes in TextVQA's own files.

    python -m playground.signs.make_textvqa

Its scenes come from seeds at and above HELD_OUT; training draws all of its seeds below, so no picture is shared. Words,
colours and fonts are the same: the set asks whether the model reads, not whether it knows new words.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from playground.signs.scenes import HELD_OUT, ON_SIGN, PATCH, SIZE, Question, Scene, coverage, make_scene, questions
from playground.signs.tokenizer import SHORT_ANSWER

QUESTIONS_FILE = "llava_textvqa_val_v051_ocr.jsonl"
ANNOTATION_FILE = "TextVQA_0.5.1_val.json"
IMAGE_FOLDER = "train_images"
SIGNS_FILE = "signs.json"
DEFAULT_OUT = Path(__file__).parents[1] / "data" / "eval" / "signs"
SEEDS_PER_SET = 1_000_000
SETS = 500  # the held-out seeds above those of set 499 serve to watch the training

_ANSWERS = 10  # people asked per question in TextVQA


def make_textvqa(out: Path, *, seed: int, images: int) -> int:
    """Write questions, annotation, pictures and `signs.json` (where the signs are); returns the number of questions.

    Args:
        out: folder, made if it is missing; files of the same names are replaced.
        seed: 0 to 499; sets of different seeds share no scene.
        images: 1 to 1,000,000.

    Raises:
        ValueError: a number out of its range.
    """
    if not 0 <= seed < SETS:
        raise ValueError(f"seed={seed} is not one of the {SETS} evaluation sets. Give 0 to {SETS - 1}.")
    if not 1 <= images <= SEEDS_PER_SET:
        raise ValueError(f"images={images}: an evaluation set holds 1 to {SEEDS_PER_SET} images.")
    (out / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)

    prompts, annotations, signs = [], [], {}
    for index in range(images):
        scene_seed = HELD_OUT + seed * SEEDS_PER_SET + index
        scene, image_id = make_scene(scene_seed), f"sign{seed:03d}{index:06d}"
        Image.fromarray(scene.image).save(out / IMAGE_FOLDER / f"{image_id}.png")
        signs[image_id] = _signs_entry(scene)
        for question in questions(scene.signs, scene_seed):
            if question.kind == "exists":
                continue  # yes or no: half right without looking
            prompts.append(_prompt_entry(question, image_id))
            annotations.append(_annotation_entry(question, image_id, len(annotations)))

    annotation = {
        "dataset_type": "val",
        "dataset_name": "textvqa",
        "dataset_version": "0.5.1",
        "data": annotations,
    }
    (out / QUESTIONS_FILE).write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    (out / ANNOTATION_FILE).write_text(json.dumps(annotation, indent=1) + "\n")
    (out / SIGNS_FILE).write_text(json.dumps(signs, indent=1) + "\n")
    return len(annotations)


def _prompt_entry(question: Question, image_id: str) -> dict:
    """Make a question as LLaVA's file has it, its id that of the image; without OCR tokens, which hold the answers."""
    return {
        "question_id": image_id,
        "image": f"{image_id}.png",
        "text": f"{question.text}\n{SHORT_ANSWER}",
        "category": "default",
    }


def _annotation_entry(question: Question, image_id: str, question_id: int) -> dict:
    return {
        "question_id": question_id,
        "question": question.text,
        "image_id": image_id,
        "image_width": SIZE,
        "image_height": SIZE,
        "answers": [question.answer] * _ANSWERS,
        "set_name": "val",
    }


def _signs_entry(scene: Scene) -> dict:
    """Describe where signs are: boxes in pixels (left, top, first column and row outside), and patches `on_sign`."""
    return {
        "width": SIZE,
        "height": SIZE,
        "patch": PATCH,
        "signs": [{"colour": sign.colour, "text": sign.text, "box": list(sign.box)} for sign in scene.signs],
        "on_sign": np.flatnonzero(coverage(scene.signs) > ON_SIGN).tolist(),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help=f"which set, 0 to {SETS - 1} (default: %(default)s)")
    parser.add_argument("--images", type=int, default=128, help="number of scenes (default: %(default)s)")
    options = parser.parse_args(arguments)
    asked = make_textvqa(options.out, seed=options.seed, images=options.images)
    print(f"{asked} questions about {options.images} images in {options.out}")


if __name__ == "__main__":
    main()
