"""Zip transformers' own LLaVA class: `python examples/transformers_llava.py HUB_ID [DOMINANT CONTEXTUAL]`.

HUB_ID is a model in Hugging Face's format, such as llava-hf/llava-1.5-7b-hf (14 GB), or a folder with one.
"""

import sys

import torch
from _common import CHECKPOINT, CONTEXTUAL, DOMINANT, PICTURE, QUESTION
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from visionzip_patch import unzip, visionzip

if len(sys.argv) < 2:
    sys.exit(__doc__)

model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="auto")
processor = AutoProcessor.from_pretrained(CHECKPOINT)
prompt = f"USER: <image>\n{QUESTION} ASSISTANT:"
inputs = processor(images=Image.open(PICTURE), text=prompt, return_tensors="pt").to(model.device, model.dtype)


@torch.inference_mode()
def show(title: str) -> None:
    tokens = len(model.get_image_features(inputs.pixel_values).pooler_output[0])
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs.input_ids.shape[1] :]
    print(f"{title}: {tokens} visual tokens, {processor.decode(answer, skip_special_tokens=True)!r}")


show("before")
visionzip(model, dominant=DOMINANT, contextual=CONTEXTUAL)
show("zipped")
unzip(model)
show("undone")
