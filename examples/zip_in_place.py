"""Zip a model in place, and undo it: `python examples/zip_in_place.py [CHECKPOINT]`."""

import torch
from _common import CHECKPOINT, CONTEXTUAL, DOMINANT, PICTURE, QUESTION
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import choose_template, conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from visionzip_patch import unzip, visionzip

tokenizer, model, processor, _ = load_pretrained_model(CHECKPOINT)
image = Image.open(PICTURE)
pixels = process_images([image], processor, model.config).to(model.device, model.dtype)

conversation = conv_templates[choose_template(None, model.config, tokenizer)].copy()
conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{QUESTION}")
conversation.append_message(conversation.roles[1], None)
ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
ids = ids[None].to(model.device)


@torch.inference_mode()
def show(title: str) -> torch.Tensor:
    """Print what the model answers; returns the image as its language model gets it, (tokens, C)."""
    (seen,) = model.image_features(pixels, [image.size])
    (answer,) = model.generate(ids, images=pixels, image_sizes=[image.size], do_sample=False, max_new_tokens=16)
    print(f"{title}: {len(seen)} visual tokens, {tokenizer.decode(answer, skip_special_tokens=True)!r}")
    return seen


before = show("before")
visionzip(model, dominant=DOMINANT, contextual=CONTEXTUAL)
show("zipped")
unzip(model)
print(f"The image is what it was, bit for bit: {torch.equal(before, show('undone'))}")
