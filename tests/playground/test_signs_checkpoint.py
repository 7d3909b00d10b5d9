"""The committed checkpoint reads signs, through Hugging Face's own classes and LLaVA's prompt written out by hand."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers import LlamaTokenizer as Tokenizer

from playground.signs.export import LLAVA_FOLDER, TOWER_FOLDER
from playground.signs.make_textvqa import ANNOTATION_FILE, IMAGE_FOLDER
from playground.signs.make_textvqa import DEFAULT_OUT as QUESTIONS
from playground.signs.train import DEFAULT_OUT as CHECKPOINTS

LLAVA, TOWER = CHECKPOINTS / LLAVA_FOLDER, CHECKPOINTS / TOWER_FOLDER
ASKED = 60


@pytest.fixture(scope="module")
def tower():
    model = CLIPVisionModel(CLIPVisionConfig.from_pretrained(TOWER))
    wanted = model.state_dict()
    weights = load_file(TOWER / "model.safetensors")
    if not any(key.startswith("vision_model.") for key in wanted):
        weights = {key.removeprefix("vision_model."): value for key, value in weights.items()}
    model.load_state_dict(weights)
    return model.float().eval()


@pytest.fixture(scope="module")
def parts():
    """The projector and the language model."""
    weights = {key: value.float() for key, value in load_file(LLAVA / "model.safetensors").items()}
    projector = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.GELU(), torch.nn.Linear(128, 128))
    prefix = "model.mm_projector."
    projector.load_state_dict({key.removeprefix(prefix): weights.pop(key) for key in list(weights) if prefix in key})
    config = json.loads((LLAVA / "config.json").read_text())
    fields = {key: value for key, value in config.items() if not key.startswith("mm_")}
    language = LlamaForCausalLM(LlamaConfig(**{**fields, "model_type": "llama", "torch_dtype": "float32"}))
    language.load_state_dict(weights)
    return projector, language.eval()


def test_full_token_accuracy(tower, parts):
    projector, language = parts
    tokenizer = Tokenizer.from_pretrained(LLAVA)
    processor = CLIPImageProcessorPil.from_pretrained(TOWER)
    before = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: "
    )
    asked = json.loads((QUESTIONS / ANNOTATION_FILE).read_text())["data"][:ASKED]
    right = 0
    for entry in asked:
        picture = Image.open(QUESTIONS / IMAGE_FOLDER / f"{entry['image_id']}.png")
        after = f"\n{entry['question']}\nAnswer the question using a single word or phrase. ASSISTANT:"
        chunks = [tokenizer(before).input_ids, tokenizer(after).input_ids[1:]]
        with torch.no_grad():
            pixels = processor(picture, return_tensors="pt").pixel_values
            features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]  # (1, 64, 128)
            first, second = (language.model.embed_tokens(torch.tensor([chunk])) for chunk in chunks)
            prompt = torch.cat([first, projector(features), second], dim=1)
            mask = torch.ones(prompt.shape[:2], dtype=torch.long)
            ids = language.generate(inputs_embeds=prompt, attention_mask=mask, max_new_tokens=8, do_sample=False)
        right += tokenizer.decode(ids[0], skip_special_tokens=True).strip() == entry["answers"][0]
    assert len(asked) == ASKED
    assert right / ASKED >= 0.85, f"{right} of {ASKED}"


def test_size():
    files = [path for folder in (LLAVA, TOWER) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) <= 12e6
