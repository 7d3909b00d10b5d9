"""The surface that lmms-eval's `llava` model and LLaVA's own scripts import and call, used as they use it."""

import copy

import pytest
import torch
from PIL import Image

from llava import LlavaLlamaForCausalLM
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.utils import disable_torch_init


@pytest.fixture(scope="module")
def loaded(golden):
    disable_torch_init()
    path = str(golden / "models/llava-v1.5-tiny")
    name = get_model_name_from_path(path)
    return load_pretrained_model(path, None, name, device_map="cpu", multimodal=True, attn_implementation="sdpa")


@pytest.fixture
def pictures(golden):
    return [
        Image.open(golden / "images" / name).convert("RGB") for name in ("street_640x480.png", "square_336x336.png")
    ]


def ask(question, tokenizer):
    conversation = copy.deepcopy(conv_templates["vicuna_v1"])
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{question}")
    conversation.append_message(conversation.roles[1], None)
    return tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")


def test_generation_as_an_evaluator_does_it(loaded, pictures):
    """Half-precision images on an fp32 model, left-padded batch with a mask, the whole output decoded."""
    tokenizer, model, processor, max_length = loaded
    assert isinstance(model, LlavaLlamaForCausalLM)
    assert max_length == 2048
    model.config.image_aspect_ratio = "pad"
    images = process_images(pictures, processor, model.config)
    images = [image.to(dtype=torch.float16, device="cpu") for image in images]
    prompts = [ask("What is the man holding?", tokenizer), ask("How many signs are there near the bridge?", tokenizer)]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, prompts))
    ids = torch.stack([torch.cat([p.new_full((longest - len(p),), pad_id), p]) for p in prompts])
    arguments = {
        "attention_mask": ids.ne(pad_id),
        "pad_token_id": pad_id,
        "images": images,
        "image_sizes": [picture.size for picture in pictures],
        "do_sample": False,
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 6,
        "use_cache": True,
    }
    out = model.generate(ids, **arguments)
    assert out.shape[1] <= 6
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    for i, prompt in enumerate(prompts):
        call = {**arguments, "images": images[i : i + 1], "image_sizes": arguments["image_sizes"][i : i + 1]}
        alone = model.generate(prompt[None], **{**call, "attention_mask": None})
        assert tokenizer.decode(alone[0], skip_special_tokens=True) == texts[i]


def test_loglikelihood_as_an_evaluator_does_it(loaded, pictures):
    tokenizer, model, processor, _ = loaded
    images = process_images(pictures[:1], processor, model.config).half()
    ids = ask("What is the man holding?", tokenizer)[None]
    labels = ids.clone()
    labels[0, :-3] = IGNORE_INDEX
    with torch.inference_mode():
        out = model(input_ids=ids, labels=labels, images=images, use_cache=True, image_sizes=[pictures[0].size])
    assert out["loss"] > 0
    greedy = out["logits"].argmax(dim=-1)
    assert greedy[:, ids.shape[1] : 576 + ids.shape[1]].shape == (1, 575)


def test_stopping_and_accessors_as_upstream_scripts_use_them(loaded, pictures):
    tokenizer, model, processor, _ = loaded
    assert SeparatorStyle.TWO != SeparatorStyle.SINGLE
    assert DEFAULT_IM_START_TOKEN != DEFAULT_IM_END_TOKEN
    tower = model.get_vision_tower()
    assert tower.is_loaded
    assert tower.image_processor is processor
    assert model.get_model().mm_projector[0].in_features == tower.hidden_size == 64
    ids = ask("What is the man holding?", tokenizer)[None]
    images = process_images(pictures[:1], processor, model.config)
    free = model.generate(ids, images=images, do_sample=False, max_new_tokens=12)
    word = tokenizer.decode(free[0, :3], skip_special_tokens=True)
    stop = KeywordsStoppingCriteria([word], tokenizer, ids)
    stopped = model.generate(ids, images=images, do_sample=False, max_new_tokens=12, stopping_criteria=[stop])
    assert stopped.shape[1] < free.shape[1]
    assert torch.equal(stopped, free[:, : stopped.shape[1]])


def test_the_templates_of_the_chat_are_where_they_were():
    from llava.serve.opening import TEMPLATES

    assert set(TEMPLATES.values()) <= conv_templates.keys()
    assert "llava_llama" not in TEMPLATES  # Vicuna, Llama-2, Llama-3 and Yi are of this class
