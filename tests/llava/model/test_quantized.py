"""8 and 4 bit: only the language model's layers; and what is said where an optional package is absent."""

import pytest
import torch
from torch import nn

from llava.model import placement
from llava.model.builder import load_pretrained_model

# bitsandbytes quantizes in blocks of 64.
BLOCKS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}


def load(folder, base=None, **kwargs):
    return load_pretrained_model(str(folder), base, None, device="cpu", **kwargs)[1]


def linear_layers(model):
    """Class names of the linear layers of each part."""
    parts = {"lm_head": set(), "vision_tower": set(), "mm_projector": set(), "layers": set()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            part = next(part for part in parts if part in name)
            parts[part].add(type(module).__name__)
    return parts


@pytest.mark.parametrize("own_tower", [False, True])
@pytest.mark.parametrize(("bits", "name"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_quantized(checkpoint, outputs, same, add_tokenizer, tmp_path, bits, name, own_tower):
    pytest.importorskip("bitsandbytes")
    folder, model = checkpoint(unfreeze_mm_vision_tower=own_tower, **BLOCKS)
    loaded = load(folder, **{f"load_{bits}": True})
    whole = {"lm_head": {"Linear"}, "vision_tower": {"Linear"}, "mm_projector": {"Linear"}}
    assert linear_layers(loaded) == {**whole, "layers": {name}}
    images = torch.ones(1, 3, 56, 56)
    assert torch.equal(loaded.encode_images(images), model.encode_images(images))
    (logits, ids), (expected, _) = outputs(loaded), outputs(model)
    assert len(ids) == 6
    similarity = nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0)
    assert 0.9 < similarity < 1.0 - 1e-6  # quantized, not broken

    fresh = load(folder, **{f"load_{bits}": True})  # running in 4 bit on a CPU repacks the weights, and rounds them
    fresh.save_pretrained(tmp_path / "saved")
    again = load(add_tokenizer(tmp_path / "saved"))
    assert linear_layers(again) == linear_layers(loaded)
    same(outputs(again), outputs(loaded))


def test_lora_on_a_quantized_base(golden):
    pytest.importorskip("bitsandbytes")
    lora, text = golden / "models/llava-v1.5-tiny-lora", torch.tensor([[1, 5, 9, 20, 30]])
    loaded = load(lora, load_8bit=True)
    assert linear_layers(loaded)["layers"] == {"Linear8bitLt"}
    with torch.no_grad():
        quantized, merged = loaded(text).logits, load(lora)(text).logits
        base = load(golden / "models/vicuna-tiny")(text).logits
    assert (quantized - merged).norm() < 0.2 * (base - merged).norm()


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_without_bitsandbytes(checkpoint, monkeypatch, bits):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need bitsandbytes: pip install bitsandbytes"):
        load(checkpoint()[0], **{f"load_{bits}": True})


@pytest.mark.parametrize("flag", ["use_flash_attn", "use_flash_attention_2"])
def test_without_flash_attn(checkpoint, monkeypatch, flag):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs flash-attn: pip install .*flash-attn.*SDPA"):
        load(checkpoint()[0], **{flag: True})


def test_both_widths():
    with pytest.raises(ValueError, match="load_8bit and load_4bit exclude each other"):
        load("anywhere", load_8bit=True, load_4bit=True)
