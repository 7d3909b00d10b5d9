"""Checkpoints in Hugging Face's format answer as transformers' own classes do."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model

IMAGE_ID = 1001
SIDE = 56
PINPOINTS = [[56, 168], [112, 56], [112, 112]]  # (height, width), as transformers reads them


def load(folder, **kwargs):
    return load_pretrained_model(str(folder), None, None, device="cpu", **kwargs)


def to_hub_names(folder, tower_keys="vision_tower.vision_model."):
    """The key names of published files, from before transformers 5."""
    old = {}
    for key, value in load_file(folder / "model.safetensors").items():
        key = key.removeprefix("model.")
        if key.startswith("language_model.") and not key.startswith(
            ("language_model.model.", "language_model.lm_head.")
        ):
            key = f"language_model.model.{key.removeprefix('language_model.')}"
        if key.startswith("lm_head."):
            key = f"language_model.{key}"
        if key.startswith("vision_tower."):
            key = tower_keys + key.removeprefix("vision_tower.").removeprefix("vision_model.")
        old[key] = value
    prefixes = {"language_model.model", "language_model.lm_head", "vision_tower", "multi_modal_projector"}
    assert {next((p for p in prefixes if key.startswith(p)), key) for key in old} <= {*prefixes, "image_newline"}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def compare(ours, theirs, ids, tokens, images, sizes=None, **hf):
    """Logits and greedy ids of a prompt with one image, which takes `tokens` places on their side."""
    place = ids.index(IMAGE_TOKEN_INDEX)
    expanded = torch.tensor([[*ids[:place], *[IMAGE_ID] * tokens, *ids[place + 1 :]]])
    ids, call = torch.tensor([ids]), {"images": images, "image_sizes": sizes}
    logits = ours(ids, **call).logits
    expected = theirs(input_ids=expanded, **hf).logits
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
    greedy = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    answer = theirs.generate(input_ids=expanded, attention_mask=torch.ones_like(expanded), **hf, **greedy)
    assert torch.equal(ours.generate(ids, **call, **greedy), answer[:, expanded.shape[1] :])


PROMPT = [1, 40, 50, IMAGE_TOKEN_INDEX, 60, 70]


@pytest.mark.parametrize("names", ["new", "hub"])
@pytest.mark.parametrize(
    ("family", "tower", "options"),
    [
        ("llama", "clip", {}),
        ("llama", "clip", {"vision_feature_select_strategy": "full"}),
        ("llama", "siglip", {}),
        ("mistral", "clip", {"vision_feature_layer": -1}),
        ("qwen2", "siglip", {"vision_feature_layer": -2}),
        ("qwen2", "clip", {"text": {"tie_word_embeddings": True}}),
        ("qwen2", "clip", {"tie_word_embeddings": True}),
    ],
)
def test_llava(hf_folder, names, family, tower, options):
    folder, theirs = hf_folder(family, tower, **options)
    if names == "hub":
        to_hub_names(folder)
    tokenizer, ours, processor, _ = load(folder)
    assert len(tokenizer) == 1000
    assert ours.config.vocab_size == 1010
    assert type(processor).__name__.lower().startswith(tower)
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    count = 16 + (options.get("vision_feature_select_strategy") == "full" and tower == "clip")
    compare(ours, theirs, PROMPT, count, images, pixel_values=images)


@pytest.mark.parametrize("names", ["new", "hub"])
@pytest.mark.parametrize(("family", "size"), [("llama", (150, 60)), ("mistral", (100, 120))])
def test_llava_next(hf_folder, names, family, size):
    folder, theirs = hf_folder(family, anyres=True)
    if names == "hub":
        to_hub_names(folder)
    _, ours, _, _ = load(folder)
    assert [[h, w] for w, h in ours.config.image_grid_pinpoints] == PINPOINTS
    crops = 4 if size == (150, 60) else 5
    images = torch.randn(1, crops, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    (tokens,) = ours.image_features(images, [size])
    hf = {"pixel_values": images, "image_sizes": torch.tensor([size[::-1]])}
    compare(ours, theirs, PROMPT, len(tokens), images, [size], **hf)


def test_an_image_becomes_the_crops_of_its_grid(hf_folder):
    from PIL import Image

    folder, _ = hf_folder(anyres=True)
    _, ours, processor, _ = load(folder)
    images = process_images([Image.new("RGB", (150, 60))], processor, ours.config)
    assert images.shape == (1, 4, 3, SIDE, SIDE)


def test_a_published_config_leaves_defaults_out(hf_folder):
    """As `llava-hf/llava-1.5-7b-hf`: what equals a default of its config class is not written."""
    text = {"max_position_embeddings": 2048, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}  # LlamaConfig's defaults
    folder, theirs = hf_folder(text=text)
    to_hub_names(folder)
    values = json.loads((folder / "config.json").read_text())
    keep = {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    values["text_config"] = {key: value for key, value in values["text_config"].items() if key in keep}
    keep |= {"image_size", "patch_size"}
    values["vision_config"] = {key: value for key, value in values["vision_config"].items() if key in keep}
    for key in ("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act", "image_seq_length"):
        values.pop(key, None)
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": False, "pad_token_id": 0}))
    _, ours, _, _ = load(folder)
    assert ours.config.pad_token_id == 0
    images = torch.randn(1, 3, SIDE, SIDE)
    compare(ours, theirs, PROMPT, 16, images, pixel_values=images)


def test_a_processor_saved_as_a_whole(hf_folder):
    """transformers 5 writes `processor_config.json`, with the image processor inside it."""
    folder, _ = hf_folder()
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": values, "patch_size": 14}))
    assert load(folder)[2].crop_size["height"] == SIDE
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config.json"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_onevision"}, "'llava_onevision' model; llava and llava_next"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'.*only 'gelu'"),
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer=\[-2, -1\].*a single layer"),
    ],
)
def test_what_our_classes_do_not_have(hf_folder, change, message):
    folder, _ = hf_folder()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_missing_weight_is_named(hf_folder):
    folder, _ = hf_folder()
    tensors = load_file(folder / "model.safetensors")
    (gone,) = (key for key in tensors if "linear_2.bias" in key)
    save_file({k: v for k, v in tensors.items() if k != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing.*model\.mm_projector\.2\.bias"):
        load(folder)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_projector_tuned_on_it_goes_back_on_it(hf_folder, tmp_path_factory, family):
    folder, _ = hf_folder(family)
    model, tuned = load(folder)[1], tmp_path_factory.mktemp("tuned")
    projector = {key: value + 1 for key, value in model.state_dict().items() if "mm_projector" in key}
    torch.save(projector, tuned / "mm_projector.bin")
    model.config.save_pretrained(tuned)
    _, loaded, processor, _ = load_pretrained_model(str(tuned), str(folder), None, device="cpu")
    expected = {**model.state_dict(), **projector}
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert processor.crop_size["height"] == SIDE


def test_fields_under_their_own_names_can_be_overwritten(hf_folder):
    folder, _ = hf_folder()
    assert load(folder, overwrite_config={"vision_feature_layer": -1})[1].config.mm_vision_select_layer == -1
    config = load(folder, overwrite_config={"text_config": {"rms_norm_eps": 0.5}})[1].config
    assert (config.rms_norm_eps, config.hidden_size) == (0.5, 48)
    for changes in ({"projector_hidden_act": "relu"}, {"mm_vision_tower": "other"}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            load(folder, overwrite_config=changes)


def test_siglip_without_its_first_patch_is_refused(hf_folder):
    folder, _ = hf_folder("llama", "siglip", vision_feature_select_strategy="default")
    with pytest.raises(ValueError, match="vision_feature_select_strategy='default' with a SigLIP tower"):
        load(folder)
