"""A budget is saved with a model and comes back with it: `python examples/save_and_load.py [CHECKPOINT]`."""

import tempfile

from _common import CHECKPOINT, CONTEXTUAL, DOMINANT, PICTURE, QUESTION

from llava.inference.batch import generate_batch
from llava.inference.decoding import GREEDY
from llava.inference.preprocess import read_picture
from llava.model.builder import load_pretrained_model
from visionzip_patch import VisionZipConfig, visionzip


def show(title: str, tokenizer, model, processor, *_) -> None:
    picture = read_picture(PICTURE, processor, model.config)
    answers = generate_batch(model, tokenizer, [QUESTION], [[picture]], GREEDY)
    print(f"{title}: {answers.image_tokens[0]} visual tokens, {answers.texts[0]!r}")


tokenizer, model, processor, _ = load_pretrained_model(CHECKPOINT)
visionzip(model, dominant=DOMINANT, contextual=CONTEXTUAL)
show("saved", tokenizer, model, processor)

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    show("loaded", *load_pretrained_model(folder))
    other = VisionZipConfig(DOMINANT // 2, CONTEXTUAL)
    show("loaded with another budget", *load_pretrained_model(folder, visionzip=other))
