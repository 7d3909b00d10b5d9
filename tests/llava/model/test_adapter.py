"""LoRA adapters, by whatever program and on whatever base, give what peft's own merge gives."""

import json
import re
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model

IMAGE_ID, PATCHES = 1001, 16
ATTENTION = r".*layers\.\d+\.self_attn\.(q|v)_proj"
LANGUAGE = {"llava": r"model\." + ATTENTION[2:], "hf": r".*language_model\." + ATTENTION}
PROJECTOR = {"llava": "mm_projector", "hf": "multi_modal_projector"}

CASES = {
    "language model": lambda kind: {"target_modules": LANGUAGE[kind]},
    "every q_proj": lambda kind: {"target_modules": ["q_proj", "fc1"]},
    "tower": lambda kind: {"target_modules": r".*vision_tower\." + ATTENTION},
    "projector": lambda kind: {"target_modules": rf".*{PROJECTOR[kind]}\.([02]|linear_[12])"},
    "all linear layers": lambda kind: {"target_modules": "all-linear"},
    "embeddings": lambda kind: {"target_modules": ["embed_tokens", "o_proj"]},
    "one layer": lambda kind: {"target_modules": ["down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "rank-stabilised": lambda kind: {"target_modules": LANGUAGE[kind], "use_rslora": True},
    "DoRA": lambda kind: {"target_modules": LANGUAGE[kind], "use_dora": True},
    "PiSSA": lambda kind: {"target_modules": LANGUAGE[kind], "init_lora_weights": "pissa"},
    "bias of LoRA": lambda kind: {"target_modules": ["fc1"], "lora_bias": True},
    "all biases": lambda kind: {"target_modules": ["fc1"], "bias": "all"},
    "biases of targets": lambda kind: {"target_modules": ["fc1"], "bias": "lora_only"},
    "patterns": lambda kind: {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 6, "up_proj": 2},
        "alpha_pattern": {r".*layers\.0\.self_attn\.q_proj": 32, "up_proj": 3},
    },
    "both tables": lambda kind: {"target_modules": LANGUAGE[kind], "modules_to_save": ["embed_tokens", "lm_head"]},
    "the head": lambda kind: {"target_modules": LANGUAGE[kind], "modules_to_save": ["lm_head"]},
    "the projector in full": lambda kind: {"target_modules": LANGUAGE[kind], "modules_to_save": [PROJECTOR[kind]]},
    "norms": lambda kind: {"target_modules": LANGUAGE[kind], "modules_to_save": ["input_layernorm"]},
    "some tokens": lambda kind: {"target_modules": LANGUAGE[kind], "trainable_token_indices": [7, 40, 60]},
}


@pytest.fixture
def base(checkpoint, hf_folder):
    """Make a base model: its folder, and a model of the class that peft wraps."""

    def make(kind, **changes):
        return checkpoint(name="base", **changes) if kind == "llava" else hf_folder(text=changes)

    return make


def train(model, folder, base_folder, settings, **saving):
    """Save an adapter with random weights for `model`, which is changed, as peft does."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **settings))
    draw = torch.Generator().manual_seed(5)
    for value in wrapped.parameters():
        if value.requires_grad:
            value.data += 0.1 * torch.randn(value.shape, generator=draw)
    wrapped.peft_config["default"].base_model_name_or_path = str(base_folder)
    wrapped.save_pretrained(folder, **saving)
    return folder


def merged_by_peft(model, folder):
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


@torch.no_grad()
def logits(model):
    """What a model of either class says of one prompt with one image."""
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    before, after = [1, 40, 50], [60, 70, 80]
    if hasattr(model, "get_vision_tower"):
        return model(torch.tensor([[*before, IMAGE_TOKEN_INDEX, *after]]), images=pixels).logits
    ids = torch.tensor([[*before, *[IMAGE_ID] * PATCHES, *after]])
    return model(input_ids=ids, pixel_values=pixels).logits


def load(folder, base_folder=None):
    return load_pretrained_model(str(folder), base_folder and str(base_folder), device="cpu")


def fresh(kind, folder):
    """The base as peft's users load it."""
    if kind == "llava":
        return load(folder)[1]
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("beside", [True, False], ids=["with config.json", "without config.json"])
@pytest.mark.parametrize("kind", ["llava", "hf"])
@pytest.mark.parametrize("case", CASES)
def test_the_merge_equals_pefts_own(base, tmp_path, kind, case, beside):
    base_folder, model = base(kind)
    before = logits(model)
    folder = train(model, tmp_path / "adapter", base_folder, CASES[case](kind))
    if beside:
        shutil.copy(base_folder / "config.json", folder)
    expected = logits(merged_by_peft(fresh(kind, base_folder), folder))
    torch.testing.assert_close(logits(load(folder)[1]), expected, atol=1e-4, rtol=1e-3)
    assert (expected - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["llava", "hf"])
@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], None], ids=["modules_to_save", "tables saved by peft"])
def test_added_tokens_and_the_tokenizer_beside_the_adapter(base, tmp_path, kind, saved):
    base_folder, model = base(kind)
    tokenizer = load(base_folder)[0]
    tokenizer.add_tokens(["<left>", "<right>"])
    model.resize_token_embeddings(len(tokenizer))  # of Hugging Face's, which has rows to spare, this takes some away
    settings = {"target_modules": LANGUAGE[kind], "modules_to_save": saved}
    folder = train(model, tmp_path / "adapter", base_folder, settings, save_embedding_layers=True)
    tokenizer.save_pretrained(folder)
    expected = fresh(kind, base_folder)
    expected.resize_token_embeddings(len(tokenizer))
    expected = logits(merged_by_peft(expected, folder))
    loaded_tokenizer, loaded, _, _ = load(folder)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-3)
    assert loaded_tokenizer.convert_tokens_to_ids("<right>") == 1001 == loaded.config.vocab_size - 1


@pytest.mark.parametrize("kind", ["llava", "hf"])
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids=str)
def test_tied_tables_that_training_has_parted(base, tmp_path, kind, saved):
    base_folder, model = base(kind, tie_word_embeddings=True)
    settings = {"target_modules": LANGUAGE[kind], "modules_to_save": saved}
    folder = train(model, tmp_path / "adapter", base_folder, settings)
    expected = logits(merged_by_peft(fresh(kind, base_folder), folder))
    torch.testing.assert_close(logits(load(folder)[1]), expected, atol=1e-4, rtol=1e-3)


def test_a_merged_tower_is_saved_with_the_model(base, tmp_path):
    base_folder, model = base("llava")
    folder = train(model, tmp_path / "adapter", base_folder, CASES["tower"]("llava"))
    tokenizer, loaded, _, _ = load(folder)
    loaded.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")[1]), logits(loaded))


def test_the_names_of_old_transformers(base, tmp_path):
    """A tower's layers were under `vision_model.`, the language model of Hugging Face's class under `model.`."""
    base_folder, model = base("hf")
    folder = train(model, tmp_path / "adapter", base_folder, CASES["every q_proj"]("hf"))
    expected = logits(load(folder)[1])
    old = {
        key.replace("model.model.language_model.", "model.language_model.model.").replace(
            "model.model.vision_tower.", "model.vision_tower.vision_model."
        ): value
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    assert old.keys() != load_file(folder / "adapter_model.safetensors").keys()
    save_file(old, folder / "adapter_model.safetensors")
    assert torch.equal(logits(load(folder)[1]), expected)


@pytest.mark.parametrize("kind", ["llava", "hf"])
@pytest.mark.parametrize(
    ("case", "lost"),
    [
        ("language model", r"layers\.1\.self_attn\.q_proj\.lora_[AB]"),
        ("every q_proj", r"layers\.0\.mlp\.fc1\.lora_A"),
        ("projector", r"projector\.(0|linear_1)\.lora_B"),
        ("both tables", r"lm_head\.weight"),
        ("the projector in full", r"projector\.(2|linear_2)\.bias"),
        ("biases of targets", r"layers\.0\.mlp\.fc1\.bias"),
        ("DoRA", r"layers\.1\.self_attn\.v_proj\.lora_magnitude_vector"),
    ],
)
def test_an_adapter_that_lacks_weights_of_its_own_is_refused(base, tmp_path, kind, case, lost):
    base_folder, model = base(kind)
    folder = train(model, tmp_path / "adapter", base_folder, CASES[case](kind))
    tensors = load_file(folder / "adapter_model.safetensors")
    left = {key: value for key, value in tensors.items() if not re.search(lost, key.replace("base_layer.", ""))}
    assert len(left) < len(tensors)
    save_file(left, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="weights are missing from"):
        load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "exclude_modules": r"model\.vision_tower.*"},
        {"target_modules": r"^(?!model\.vision_tower).*\.q_proj"},
    ],
    ids=str,
)
def test_patterns_are_read_in_the_spelling_of_the_adapters_file(base, tmp_path, settings):
    base_folder, model = base("hf")
    folder = train(model, tmp_path / "adapter", base_folder, settings)
    expected = logits(merged_by_peft(fresh("hf", base_folder), folder))
    torch.testing.assert_close(logits(load(folder)[1]), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llava", "hf"])
def test_added_tokens_that_are_trained_by_themselves(base, tmp_path, kind):
    base_folder, model = base(kind)
    tokenizer, rows = load(base_folder)[0], model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<{i}>" for i in range(rows - len(tokenizer) + 2)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    settings = {"target_modules": LANGUAGE[kind], "trainable_token_indices": [rows, rows + 1]}
    folder = train(model, tmp_path / "adapter", base_folder, settings)
    tokenizer.save_pretrained(folder)
    expected = peft.PeftModel.from_pretrained(resized(fresh(kind, base_folder), rows + 2), folder)
    expected = expected.merge_and_unload().get_input_embeddings().weight[rows:]
    loaded = load(folder)[1].get_input_embeddings().weight
    assert len(loaded) == rows + 2
    torch.testing.assert_close(loaded[rows:], expected)


def resized(model, tokens):
    model.resize_token_embeddings(tokens)
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, r"has rank 4, but adapter_config.json says 8"),
        ({"peft_type": "IA3"}, "peft_type='IA3'; LORA can be loaded"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication="),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens="),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"use_something_of_next_year": True}, "use_something_of_next_year=True"),
        ({"r": "four"}, "adapter_config.json"),
    ],
    ids=str,
)
def test_an_adapter_of_another_kind_is_refused_by_name(base, tmp_path, changes, message):
    base_folder, model = base("llava")
    folder = train(model, tmp_path / "adapter", base_folder, CASES["language model"]("llava"))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["alpha_pattern", "rank_pattern", "exclude_modules", "use_dora", "bias"])
def test_null_in_an_adapters_config_is_the_default(base, tmp_path, name):
    base_folder, model = base("llava")
    folder = train(model, tmp_path / "adapter", base_folder, CASES["language model"]("llava"))
    expected, file = logits(load(folder)[1]), folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: None}))
    assert torch.equal(logits(load(folder)[1]), expected)


def test_a_number_that_is_not_finite_is_found_in_the_adapter(base, tmp_path):
    base_folder, model = base("llava")
    folder = train(model, tmp_path / "adapter", base_folder, CASES["language model"]("llava"))
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"lora_A.weight of {folder}: 1 of its"):
        load(folder)


def test_a_config_that_does_not_belong_to_the_base(base, checkpoint, hf_folder, tmp_path):
    base_folder, model = base("llava")
    folder = train(model, tmp_path / "adapter", base_folder, CASES["language model"]("llava"))
    shutil.copy(hf_folder()[0] / "config.json", folder)
    with pytest.raises(ValueError, match=r"a config.json in Hugging Face's format.*neither says which tower"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_projector_file_that_lacks_weights_is_refused_over_a_whole_base_too(base, tmp_path, kept):
    base_folder, model = base("llava")
    weights = {key: value.clone() for key, value in model.state_dict().items() if "mm_projector" in key}
    for name, marker in (("mm_projector.bin", None), ("non_lora_trainables.bin", CASES["language model"]("llava"))):
        folder = tmp_path / name
        folder.mkdir()
        if marker:
            train(model, folder, base_folder, marker)
        shutil.copy(base_folder / "config.json", folder)
        torch.save(dict(list(weights.items())[:kept]), folder / name)
        with pytest.raises(ValueError, match=rf"{4 - kept} weights are missing from .*mm_projector"):
            load(folder, base_folder)
