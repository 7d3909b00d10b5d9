"""Every kind of checkpoint loads, from what its files say; what is wrong with one is said by name."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from llava.model.builder import load_pretrained_model
from llava.model.description import read_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from visionzip_patch import VisionZipConfig, visionzip

CLASSES = {"llama": LlavaLlamaForCausalLM, "mistral": LlavaMistralForCausalLM, "qwen": LlavaQwenForCausalLM}
WEIGHTS = "model.safetensors"
OLD_TOWER, NEW_TOWER = "model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."


def load(folder, base=None, **kwargs):
    return load_pretrained_model(str(folder), None if base is None else str(base), None, **kwargs)


def load_model(folder, base=None, **kwargs):
    return load(folder, base, **kwargs)[1]


def change_config(folder, drop=(), file="config.json", **changes):
    values = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in values.items() if key not in drop}))


def change_weights(folder, change):
    tensors = change(load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder, suffix):
    """Two shards and an index in place of the one file, as PyTorch or safetensors files."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    stem, save = ("pytorch_model", torch.save) if suffix == "bin" else ("model", save_safetensors)
    names, places = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{i:05}-of-00002.{suffix}"
        save({key: tensors[key] for key in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def save_safetensors(tensors, file):
    save_file(tensors, file, metadata={"format": "pt"})


def to_bin(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


# How it is called


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"device_map": "cpu", "multimodal": True, "attn_implementation": "sdpa"},
        {"device_map": "auto", "multimodal": True, "attn_implementation": "sdpa", "device": "cpu"},
        {"device": "cpu"},
        {"device": torch.device("cpu"), "device_map": {"": "cpu"}},
        {"device_map": {"": "cpu"}, "customized_config": None, "use_flash_attention_2": False},
        {"device_map": None, "device": "cpu"},
    ],
    ids=str,
)
def test_the_ways_in_which_it_is_called(checkpoint, outputs, same, call):
    folder, model = checkpoint()
    if not call:
        call = {"device": "cpu"} if torch.cuda.is_available() else {}
    tokenizer, loaded, processor, length = load_pretrained_model(str(folder), None, "llava-v1.5-tiny", **call)
    assert isinstance(loaded, LlavaLlamaForCausalLM)
    assert not any(module.training for module in loaded.modules())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert length == 2048
    assert processor.crop_size["height"] == 56
    assert tokenizer("Hello").input_ids[0] == tokenizer.bos_token_id
    same(outputs(loaded), outputs(model))


def test_a_path_object_and_a_context_length(checkpoint):
    folder, _ = checkpoint(max_sequence_length=4096)
    assert load_pretrained_model(folder)[3] == 4096


@pytest.mark.parametrize("own_tower", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dtype", torch.bfloat16, torch.bfloat16),
        ("dtype", "bfloat16", torch.bfloat16),
        ("torch_dtype", "float16", torch.float16),
        ("torch_dtype", torch.float16, torch.float16),
    ],
)
def test_dtype_is_that_of_all_parts(checkpoint, outputs, key, value, expected, own_tower):
    folder, _ = checkpoint(unfreeze_mm_vision_tower=own_tower)
    model = load_model(folder, **{key: value})
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.get_vision_tower().dtype == expected
    assert outputs(model)[0].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("own_tower", [False, True])
def test_on_a_gpu_half_precision_is_the_default(checkpoint, own_tower):
    folder, _ = checkpoint(unfreeze_mm_vision_tower=own_tower)
    model = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    images = torch.randn(1, 3, 56, 56)
    assert model.generate(torch.tensor([[1, -200, 5]], device="cuda"), images=images, max_new_tokens=3).shape == (1, 3)
    assert load_model(folder, device_map="cpu").dtype == torch.float32


def test_a_budget_in_the_call(checkpoint, outputs):
    folder, _ = checkpoint()
    model = load_model(folder, visionzip=VisionZipConfig(5, 2))
    assert model.encode_images(torch.zeros(1, 3, 56, 56)).shape[1] == 7
    assert model.config.visionzip["dominant"] == 5
    with pytest.raises(ValueError, match="17"):  # CLS + 16 patches
        load(folder, visionzip=VisionZipConfig(54, 10))
    with pytest.raises(ValueError, match="language model without vision: there is nothing to zip"):
        load(checkpoint(tower=None, name="text")[0], visionzip=VisionZipConfig(5, 2))


def test_a_language_model_without_vision(golden):
    _, model, processor, _ = load(golden / "models/vicuna-tiny")
    assert processor is None
    assert model.get_vision_tower() is None
    assert model.generate(torch.tensor([[1, 5, 9]]), do_sample=False, max_new_tokens=3).shape == (1, 3)
    for encode in (model.encode_images, model.image_features):
        with pytest.raises(ValueError, match="this model has no vision tower"):
            encode(torch.zeros(1, 3, 56, 56))


# Whole checkpoints


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", "safetensors"),
        ("llama", "sharded safetensors"),
        ("llama", "bin"),
        ("llama", "sharded bin"),
        ("mistral", "sharded bin"),
        ("qwen", "bin"),
    ],
)
def test_layouts_of_weight_files(checkpoint, outputs, same, family, layout):
    folder, model = checkpoint(family)
    if layout.endswith("bin"):  # of the time when these buffers were saved
        old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)}
        old[f"{OLD_TOWER}embeddings.position_ids"] = torch.arange(17)[None]
        change_weights(folder, lambda tensors: tensors | old)
    if layout.startswith("sharded"):
        shard(folder, layout.split()[1])
    elif layout == "bin":
        to_bin(folder)
    loaded = load_model(folder)
    assert isinstance(loaded, CLASSES[family])
    same(outputs(loaded), outputs(model))


@pytest.mark.parametrize(
    ("family", "model_type", "architecture"),
    [
        ("llama", "llava", "LlavaLlamaForCausalLM"),
        ("llama", "llava", None),
        ("llama", "llava_llama", None),
        ("mistral", "llava", "LlavaMistralForCausalLM"),
        ("mistral", "llava_mistral", "LlavaMistralForCausalLM"),
        ("mistral", "llava_mistral", None),
        ("qwen", "llava", "LlavaQwenForCausalLM"),
        ("qwen", "llava_qwen", None),
    ],
)
def test_the_class_follows_from_the_config(checkpoint, outputs, same, family, model_type, architecture):
    folder, model = checkpoint(family)
    change_config(folder, model_type=model_type, architectures=[architecture] if architecture else None)
    loaded = load_model(folder)
    assert type(loaded) is CLASSES[family]
    same(outputs(loaded), outputs(model))


def test_an_unknown_model_type_is_named_with_the_known_ones(checkpoint):
    folder, _ = checkpoint()
    change_config(folder, model_type="llava_mpt", architectures=["LlavaMptForCausalLM"])
    with pytest.raises(ValueError, match=r"'llava_mpt'.*llama, mistral, qwen2"):
        load(folder)


def test_tied_embeddings(checkpoint, outputs, same):
    folder, model = checkpoint("qwen", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    loaded = load_model(folder)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    same(outputs(loaded), outputs(model))


@pytest.mark.parametrize("name", ["my-lora-mpt", "vicuna-mistral", "llava-lora-qwen-8bit"])
def test_the_name_of_the_folder_means_nothing(checkpoint, outputs, same, name):
    folder, model = checkpoint(name=name)
    loaded = load_pretrained_model(str(folder), None, name)[1]
    assert type(loaded) is LlavaLlamaForCausalLM
    same(outputs(loaded), outputs(model))


def test_a_base_that_a_whole_model_does_not_need(checkpoint, caplog):
    folder, _ = checkpoint()
    load(folder, "/nowhere")
    assert "model_base=/nowhere is not used" in caplog.text


def test_rows_are_added_for_tokens_the_config_asks_for(checkpoint):
    folder, _ = checkpoint(mm_use_im_patch_token=True, mm_use_im_start_end=True)
    tokenizer, model, _, _ = load(folder)
    assert len(tokenizer) == 1003
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 1003
    assert model.config.vocab_size == 1003


def test_a_checkpoint_from_the_hub(checkpoint, outputs, same, tmp_path):
    """As it lies in the hub's cache; `revision` and `cache_dir` reach every file."""
    folder, model = checkpoint(unfreeze_mm_vision_tower=True)
    cache, commit = tmp_path / "cache", "0123456789" * 4
    snapshot = cache / "models--someone--tiny" / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "v2").write_text(commit)
    hub = {"cache_dir": str(cache), "revision": "v2"}
    tokenizer, loaded, processor, _ = load("someone/tiny", **hub)
    same(outputs(loaded), outputs(model))
    assert processor.crop_size["height"] == 56
    assert len(tokenizer) == 1000

    lora, _ = lora_of(model, tmp_path / "lora", base="someone/tiny")
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    assert isinstance(load_model(lora, cache_dir=str(cache)), LlavaLlamaForCausalLM)
    with pytest.raises(ValueError, match=r"no such folder.*cannot be fetched as a hub id"):
        load("someone/tiny", cache_dir=str(tmp_path / "other"))


# Projector-only


@pytest.fixture
def projector(checkpoint, tmp_path):
    """A projector-only folder, its base, and the whole model."""
    whole, model = checkpoint(name="whole")
    base = text_part(whole, tmp_path / "base")
    folder = tmp_path / "my-lora-pretrain"
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    tensors = {key: value.half() for key, value in load_file(whole / WEIGHTS).items() if "mm_projector" in key}
    torch.save(tensors, folder / "mm_projector.bin")
    return folder, base, model


def text_part(whole, folder):
    """The language model alone, as published ones look."""
    shutil.copytree(whole, folder)
    change_weights(folder, lambda tensors: {k: v for k, v in tensors.items() if "mm_" not in k and "vision" not in k})
    names = [key for key in json.loads((folder / "config.json").read_text()) if key.startswith(("mm_", "unfreeze"))]
    change_config(folder, drop=names, model_type="llama", architectures=["LlamaForCausalLM"])
    return folder


def test_a_projector_on_its_base(projector, outputs, same):
    folder, base, model = projector
    loaded = load_model(folder, base)
    for parameter in model.get_model().mm_projector.parameters():
        parameter.data = parameter.data.half().float()
    same(outputs(loaded), outputs(model))


def test_the_tokenizer_beside_a_projector_is_the_one_that_is_used(projector, add_tokenizer):
    folder, base, _ = projector
    assert "<spot>" not in load(folder, base)[0].get_vocab()
    tokenizer = load(folder, base)[0]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<spot>"]})
    tokenizer.save_pretrained(folder)
    loaded, model, _, _ = load(folder, base)
    assert loaded.convert_tokens_to_ids("<spot>") == 1000
    assert model.get_input_embeddings().num_embeddings == 1001


def test_a_whole_model_with_its_first_projector_beside_it(checkpoint, outputs, same):
    """As liuhaotian/llava-v1.5-7b: the file is of the stage before."""
    folder, model = checkpoint()
    torch.save({"model.mm_projector.0.weight": torch.zeros(48, 32)}, folder / "mm_projector.bin")
    same(outputs(load_model(folder)), outputs(model))


def test_what_is_filled_in_later_is_not_reported_as_missing(projector):
    """transformers would log a table of it."""
    folder, base, _ = projector
    log, records = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler()
    handler.emit = records.append
    log.addHandler(handler)
    try:
        load(folder, base)
        assert not records
        LlamaForCausalLM.from_pretrained(folder.parent / "whole")
        assert any("LOAD REPORT" in record.getMessage() for record in records)  # others' are untouched
    finally:
        log.removeHandler(handler)


def test_a_projector_without_its_base(projector):
    folder, base, _ = projector
    with pytest.raises(ValueError, match=r"only a projector: pass model_base"):
        load(folder)
    with pytest.raises(ValueError, match=r"pass model_base.*Tried '/nowhere'.*no such folder"):
        load(folder, "/nowhere")
    with pytest.raises(ValueError, match=r"only a projector, and .* only a projector: pass model_base"):
        load(folder, folder)
    change_config(base, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(ValueError, match=r"trained on a llama model, but .* is a qwen model"):
        load(folder, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"model.mm_projector.4.bias": torch.zeros(48)},
            r"1 weights are not expected.*projector\.4\.bias",
        ),
        (lambda t: {k: v for k, v in t.items() if "2.bias" not in k}, r"1 weights are missing.*mm_projector\.2\.bias"),
        (lambda t: t | {"model.mm_projector.0.weight": torch.zeros(48, 16)}, r"\(48, 16\).*\(48, 32\)"),
        (lambda t: {"state_dict": t}, r"no table of tensors by name"),
        (lambda t: list(t.values()), r"no table of tensors by name"),
    ],
)
def test_a_projector_that_does_not_fit(projector, change, message):
    folder, base, _ = projector
    torch.save(change(torch.load(folder / "mm_projector.bin")), folder / "mm_projector.bin")
    with pytest.raises(ValueError, match=message):
        load(folder, base)


# LoRA


def lora_of(model, folder, base, extra=(), **settings):
    """Save random LoRA weights for the language model of `model` as LLaVA's training does; the folder, and the model
    with them, unmerged. `model` is changed."""
    names = {"target_modules": ["q_proj", "v_proj", "up_proj"], "exclude_modules": r".*vision_tower.*", **settings}
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **names))
    generator = torch.Generator().manual_seed(3)
    for key, parameter in wrapped.named_parameters():
        if "lora_B" in key:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    change_config(folder, drop=["exclude_modules"], file="adapter_config.json")  # LLaVA's has no such entry
    model.config.save_pretrained(folder)
    parts = ("mm_projector", *extra)
    trained = {key: value for key, value in wrapped.named_parameters() if any(part in key for part in parts)}
    trained = {key: value.data.clone() for key, value in trained.items() if "lora_" not in key}
    torch.save(trained, folder / "non_lora_trainables.bin")
    return folder, wrapped.eval()


def agree(outputs, one, other):
    (logits, ids), (other_logits, other_ids) = outputs(one), outputs(other)
    torch.testing.assert_close(logits, other_logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(ids, other_ids)


@pytest.mark.parametrize("base_from", ["argument", "absolute", "relative"])
def test_lora_is_merged(checkpoint, outputs, tmp_path, base_from):
    whole, model = checkpoint(name="whole")
    before = outputs(model)[0]
    base = text_part(whole, tmp_path / "base")
    named = {"argument": "/nowhere", "absolute": base, "relative": "../base"}[base_from]
    folder, wrapped = lora_of(model, tmp_path / "foo", named)
    if base_from == "argument":  # and in the file that older ones have
        adapter = folder / "adapter_model.safetensors"
        torch.save(load_file(adapter), folder / "adapter_model.bin")
        adapter.unlink()
    loaded = load_model(folder, base if base_from == "argument" else None)
    assert type(loaded) is LlavaLlamaForCausalLM
    assert not any("lora" in key for key in loaded.state_dict())
    agree(outputs, loaded, wrapped.get_base_model())
    assert (outputs(loaded)[0] - before).abs().max() > 0.01


@pytest.mark.parametrize("own_tower", [False, True])
def test_lora_leaves_the_tower_alone(checkpoint, tmp_path, own_tower):
    """Its layers are named q_proj and v_proj as the language model's are."""
    whole, model = checkpoint(name="whole", unfreeze_mm_vision_tower=own_tower)
    before = {key: value.clone() for key, value in model.get_vision_tower().state_dict().items()}
    folder, _ = lora_of(model, tmp_path / "lora", whole)
    after = load_model(folder).get_vision_tower().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_lora_of_an_own_tower_is_merged_too(checkpoint, outputs, tmp_path):
    whole, model = checkpoint(name="whole", unfreeze_mm_vision_tower=True)
    tokens = model.encode_images(torch.ones(1, 3, 56, 56))
    folder, wrapped = lora_of(model, tmp_path / "lora", whole, exclude_modules=None)
    loaded = load_model(folder)
    assert (loaded.encode_images(torch.ones(1, 3, 56, 56)) - tokens).abs().max() > 0.01
    agree(outputs, loaded, wrapped.get_base_model())


@pytest.mark.parametrize("prefix", [OLD_TOWER, NEW_TOWER])
def test_lora_beside_a_tower_that_was_trained_in_full(checkpoint, outputs, tmp_path, prefix):
    """On a base without a tower; only what was trained is in the folder."""
    whole, model = checkpoint(name="whole", unfreeze_mm_vision_tower=True)
    model.get_vision_tower().drop()
    model.get_vision_tower().load_model()
    model.get_vision_tower().vision_tower.encoder.layers[1].mlp.fc1.weight.data += 0.1
    part = "encoder.layers.1.mlp.fc1"
    folder, wrapped = lora_of(model, tmp_path / "lora", text_part(whole, tmp_path / "base"), extra=[part])
    trained = torch.load(folder / "non_lora_trainables.bin")
    assert sum(part in key for key in trained) == 2
    torch.save({k.replace(NEW_TOWER, prefix): v for k, v in trained.items()}, folder / "non_lora_trainables.bin")
    loaded = load_model(folder)
    agree(outputs, loaded, wrapped.get_base_model())
    loaded.save_pretrained(tmp_path / "merged")
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(whole / file, tmp_path / "merged")
    agree(outputs, load_model(tmp_path / "merged"), wrapped.get_base_model())


def test_lora_on_a_whole_llava(checkpoint, outputs, tmp_path):
    """Its projector need not be in the LoRA folder."""
    whole, model = checkpoint(name="whole")
    folder, wrapped = lora_of(model, tmp_path / "lora", whole)
    (folder / "non_lora_trainables.bin").unlink()
    agree(outputs, load_model(folder), wrapped.get_base_model())
    with pytest.raises(ValueError, match=r"4 weights are missing.*mm_projector"):
        load(folder, text_part(whole, tmp_path / "base"))


@pytest.mark.parametrize("rows_in", ["non_lora_trainables.bin", "adapter_model.safetensors"])
def test_lora_with_a_larger_vocabulary(checkpoint, outputs, tmp_path, rows_in):
    whole, model = checkpoint(name="whole")
    base = text_part(whole, tmp_path / "base")
    model.resize_token_embeddings(1003)
    model.get_input_embeddings().weight.data[1000:] = torch.randn(3, 48)
    model.config.mm_use_im_patch_token = model.config.mm_use_im_start_end = True
    rows = ("embed_tokens", "lm_head")
    folder, wrapped = lora_of(model, tmp_path / "lora", base, extra=rows)
    if rows_in != "non_lora_trainables.bin":
        trained = torch.load(folder / "non_lora_trainables.bin")
        moved = {key: value for key, value in trained.items() if any(name in key for name in rows)}
        assert len(moved) == 2
        torch.save({k: v for k, v in trained.items() if k not in moved}, folder / "non_lora_trainables.bin")
        save_safetensors(load_file(folder / rows_in) | moved, folder / rows_in)
    tokenizer, loaded, _, _ = load(folder)
    assert len(tokenizer) == loaded.lm_head.out_features == loaded.config.vocab_size == 1003
    agree(outputs, loaded, wrapped.get_base_model())


def test_lora_files_that_do_not_fit(checkpoint, tmp_path):
    whole, model = checkpoint(name="whole")
    folder, _ = lora_of(model, tmp_path / "lora", whole)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    save_safetensors({key: value for key, value in tensors.items() if key != name}, weights)
    with pytest.raises(ValueError, match=rf"1 weights are missing.*{name}"):
        load(folder)
    save_safetensors(tensors | {name.replace("layers.0", "layers.7"): tensors[name].clone()}, weights)
    with pytest.raises(ValueError, match=r"1 weights are not expected.*layers\.7"):
        load(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"none of adapter_model.safetensors, adapter_model.bin"):
        load(folder)
    save_safetensors(tensors, weights)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"adapter files but no config.json.*neither says which tower"):
        load(folder, text_part(whole, tmp_path / "base"))


def test_lora_whose_base_is_elsewhere(checkpoint, tmp_path):
    _, model = checkpoint(name="whole")
    folder, _ = lora_of(model, tmp_path / "lora", "./checkpoints/vicuna-13b-v1.5")
    with pytest.raises(ValueError, match=r"LoRA weights: pass model_base.*Tried './checkpoints/vicuna-13b-v1.5'"):
        load(folder)
    change_config(folder, file="adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"only LoRA weights: pass model_base"):
        load(folder)


# The vision tower


def test_a_relative_tower_is_beside_the_checkpoint(checkpoint, outputs, same, tmp_path, tower_of, monkeypatch):
    folder, model = checkpoint()
    shutil.copytree(tower_of("clip"), tmp_path / "towers/clip")
    change_config(folder, mm_vision_tower="../towers/clip")
    elsewhere = tmp_path / "a/b"
    decoy = tmp_path / "a/towers/clip"
    shutil.copytree(tower_of("siglip"), decoy)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loaded = load_model(os.path.relpath(folder))
    same(outputs(loaded), outputs(model))
    assert Path(loaded.config.mm_vision_tower) == tmp_path / "towers/clip"
    assert os.path.isabs(json.loads((checkpoint(name="absolute")[0] / "config.json").read_text())["mm_vision_tower"])


def whole_model(tower, folder, kind):
    """A published CLIP or SigLIP folder: both halves, old key names, a `.bin`, sizes as one number."""
    vision = json.loads(Path(tower, "config.json").read_text())
    text = {
        "vocab_size": 50,
        "hidden_size": vision["hidden_size"],
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config_class, model_class = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    model = model_class(config_class(text_config=text, vision_config={**vision, "vision_use_head": True}))
    model.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    own = load_file(Path(tower, WEIGHTS))
    own = {key if key.startswith("vision_model.") else f"vision_model.{key}": value for key, value in own.items()}
    assert own.keys() <= tensors.keys()
    assert any(key.startswith("text_model.") for key in tensors)
    (folder / WEIGHTS).unlink()
    count = tensors["vision_model.embeddings.position_embedding.weight"].shape[0]
    tensors |= {**own, "vision_model.embeddings.position_ids": torch.arange(count)[None]}
    torch.save(tensors, folder / "pytorch_model.bin")
    processor = json.loads(Path(tower, "preprocessor_config.json").read_text())
    if kind == "clip":
        processor |= {"size": 56, "crop_size": 56, "feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_tower_folder_with_the_text_half_too(checkpoint, outputs, same, tmp_path, tower_of, kind):
    folder, model = checkpoint(tower=kind)
    whole_model(tower_of(kind), tmp_path / "published", kind)
    change_config(folder, mm_vision_tower="../published")
    _, loaded, processor, _ = load(folder)
    same(outputs(loaded), outputs(model))
    image = torch.zeros(80, 60, 3, dtype=torch.uint8).numpy()
    assert processor.preprocess(image, return_tensors="pt").pixel_values.shape == (1, 3, 56, 56)


def test_towers_that_cannot_be_loaded(checkpoint, tmp_path, tower_of, golden):
    folder, _ = checkpoint()
    for name in ("../nowhere", "/nowhere/clip", "openai/clip-vit-large-patch14-336"):
        change_config(folder, mm_vision_tower=name)
        with pytest.raises(ValueError, match=rf"mm_vision_tower='{name}' is neither a folder.*nor a model id"):
            load(folder)
    change_config(folder, mm_vision_tower=str(golden / "models/vicuna-tiny"))
    with pytest.raises(ValueError, match=r"is a 'llama' model; known kinds are clip"):
        load(folder)

    tower = tmp_path / "tower"
    shutil.copytree(tower_of("clip"), tower)
    change_config(folder, mm_vision_tower="../tower")
    change_weights(tower, lambda tensors: {k: v for k, v in tensors.items() if "layers.0.mlp.fc1" not in k})
    with pytest.raises(ValueError, match=r"lacks 2 weights.*encoder.layers.0.mlp.fc1.bias"):
        load(folder)
    (tower / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"none of model.safetensors.*the folder holds config.json"):
        load(folder)
    shutil.copy(Path(tower_of("clip"), WEIGHTS), tower)
    load(folder)
    (tower / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config.json"):
        load(folder)


@pytest.mark.parametrize("keys", [OLD_TOWER, NEW_TOWER])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_own_tower_weights_win(checkpoint, outputs, same, tower_of, keys, kind):
    """As in LLaVA-1.6: mm_vision_tower is only where the tower came from."""
    folder, model = checkpoint(tower=kind, unfreeze_mm_vision_tower=True, mm_patch_merge_type="spatial_unpad")
    shake_tower(model)
    model.save_pretrained(folder)
    assert any(key.startswith(OLD_TOWER) for key in load_file(folder / WEIGHTS))
    change_weights(folder, lambda tensors: {k.replace(OLD_TOWER, keys): v for k, v in tensors.items()})
    change_config(folder, drop=["mm_vision_tower_config"])  # upstream's has none
    (folder / "preprocessor_config.json").unlink()
    loaded = load_model(folder)
    same(outputs(loaded), outputs(model))
    origin = load_file(Path(tower_of(kind), WEIGHTS))
    origin = {key.removeprefix("vision_model."): value for key, value in origin.items()}
    assert not any(torch.equal(loaded.get_vision_tower().vision_tower.state_dict()[key], origin[key]) for key in origin)


def shake_tower(model):
    for parameter in model.get_vision_tower().parameters():
        parameter.data += 0.02


def test_an_own_tower_that_is_not_in_the_files(checkpoint, outputs, same, caplog):
    folder, model = checkpoint(unfreeze_mm_vision_tower=True)
    change_weights(folder, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(NEW_TOWER)})
    change_config(folder, drop=["mm_vision_tower_config"])
    loaded = load_model(folder)
    model.get_vision_tower().drop()
    model.get_vision_tower().load_model()
    same(outputs(loaded), outputs(model))
    assert f"has no weights of a tower: those of {model.config.mm_vision_tower} are used" in caplog.text
    loaded.save_pretrained(folder)
    caplog.clear()
    same(outputs(load_model(folder)), outputs(model))  # now it is in them
    assert not caplog.records


def test_half_an_own_tower_is_an_error(checkpoint):
    folder, _ = checkpoint(unfreeze_mm_vision_tower=True)
    change_weights(folder, lambda tensors: {k: v for k, v in tensors.items() if "layers.1.mlp.fc1" not in k})
    with pytest.raises(ValueError, match=r"2 weights are missing.*encoder.layers.1.mlp.fc1.bias"):
        load(folder)


@pytest.mark.parametrize("keys", [OLD_TOWER, NEW_TOWER])
@pytest.mark.parametrize("changes", [{"unfreeze_mm_vision_tower": False}, {}], ids=["not trained", "half a tower"])
def test_tower_weights_that_are_not_used_are_told(checkpoint, outputs, same, caplog, keys, changes):
    """As LLaVA does where the config says that the tower was not trained."""
    folder, model = checkpoint(**changes)
    own = {f"{keys}embeddings.class_embedding": torch.ones(32), f"{keys}encoder.layers.0.mlp.fc1.bias": torch.ones(64)}
    change_weights(folder, lambda tensors: tensors | own)
    same(outputs(load_model(folder)), outputs(model))
    assert "weights of a vision tower that differ" in caplog.text


def tuned(checkpoint, family="llama", kind="clip", **said):
    """A checkpoint with a tower of its own, in which config.json says of the tower what `said` says; and its model."""
    folder, model = checkpoint(family, kind, unfreeze_mm_vision_tower=True)
    change_config(folder, drop=("mm_vision_tower_config", "unfreeze_mm_vision_tower"), **said)
    return folder, model


@pytest.mark.parametrize(
    ("family", "kind", "said"),
    [
        ("llama", "clip", {"mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model"}),
        ("qwen", "siglip", {"mm_tunable_parts": "mm_mlp_adapter, mm_vision_tower", "unfreeze_mm_vision_tower": False}),
        ("llama", "siglip", {}),
        ("mistral", "clip", {"tune_vision_tower": True}),
    ],
    ids=["LLaVA-NeXT", "LLaVA-NeXT, both fields", "no word", "a fork's word"],
)
@pytest.mark.parametrize("layout", ["", "bin", "shards"])
def test_a_trained_tower_is_used_whoever_says_so(
    checkpoint, outputs, same, tmp_path, caplog, family, kind, said, layout
):
    folder, model = tuned(checkpoint, family, kind, **said)
    {"": lambda: None, "bin": lambda: to_bin(folder), "shards": lambda: shard(folder, "bin")}[layout]()
    loaded = load_model(folder)
    same(outputs(loaded), outputs(model))
    loaded.save_pretrained(tmp_path / "again")
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(folder / file, tmp_path / "again")
    same(outputs(load_model(tmp_path / "again")), outputs(model))
    assert not caplog.records


def test_a_tower_that_is_a_rounded_copy_of_the_original_needs_no_word(checkpoint, tower_of, caplog):
    """LLaVA-1.5 saves the frozen tower too, in half precision."""
    folder, _ = checkpoint()
    original = load_file(Path(tower_of("clip")) / WEIGHTS)
    change_weights(folder, lambda tensors: tensors | {f"{OLD_TOWER}{k}": v.half() for k, v in original.items()})
    change_config(folder, unfreeze_mm_vision_tower=False)
    load(folder)
    assert not caplog.records


def behind(name, layer):
    return f"encoder.layers.{layer}." in name or "post_layernorm" in name or ".head." in name


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("place", ["checkpoint", "tower folder"])
def test_weights_that_nobody_reads_may_be_absent(checkpoint, outputs, same, tmp_path, tower_of, kind, place):
    """LLaVA-NeXT deletes SigLIP's last layer and head before training."""
    tower = Path(shutil.copytree(tower_of(kind), tmp_path / "tower"))
    folder, model = tuned(checkpoint, kind=kind) if place == "checkpoint" else checkpoint(tower=kind)
    change_config(folder, mm_vision_tower=str(tower), unfreeze_mm_vision_tower=place == "checkpoint")
    holder = folder if place == "checkpoint" else tower
    change_weights(holder, lambda tensors: {k: v for k, v in tensors.items() if not behind(k, 2)})
    loaded = load_model(folder)
    same(outputs(loaded), outputs(model))
    names = loaded.get_vision_tower().vision_tower.state_dict()
    assert not any(behind(name, 2) for name in names)  # random weights would be saved with it
    change_weights(holder, lambda tensors: {k: v for k, v in tensors.items() if not behind(k, 1)})
    with pytest.raises(ValueError, match=r"encoder\.layers\.1"):
        load(folder)


# Fields of config.json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio='highres'.*square, pad, anyres"),
        ({"image_aspect_ratio": "anyres_max_0"}, "image_aspect_ratio='anyres_max_0'"),
        ({"image_aspect_ratio": 3}, "image_aspect_ratio=3"),
        ({"mm_patch_merge_type": "spatial_unpad_maxpool2x2"}, "mm_patch_merge_type='spatial_unpad_maxpool2x2'"),
        ({"mm_projector_type": "mlp2x_res2x_gelu"}, "mm_projector_type='mlp2x_res2x_gelu'.*linear"),
        ({"mm_projector_type": "pooler"}, "mm_projector_type='pooler'"),
        ({"mm_projector_type": "mlp0x_gelu"}, "mm_projector_type='mlp0x_gelu'"),
        ({"mm_projector_type": "identity"}, "mm_projector_type='identity'.*32 channels.*takes 48"),
        ({"mm_vision_select_layer": [-2, -5]}, r"mm_vision_select_layer=\[-2, -5\].*whole number"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer='-2'"),
        ({"mm_vision_select_feature": "slicefour_patch"}, "mm_vision_select_feature='slicefour_patch'"),
        ({"mm_hidden_size": 96}, "mm_hidden_size=96.*gives 32 channels"),
        ({"mm_hidden_size": None}, "mm_hidden_size=None.*gives 32 channels"),
        ({"s2": True, "s2_scales": "56,112"}, "s2=True"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type='qformer'"),
        ({"mm_vision_tower_aux": "convnext"}, "mm_vision_tower_aux='convnext'"),
        ({"mm_video_tower": "video"}, "mm_video_tower='video'"),
        ({"image_grid": 2}, "image_grid=2"),
        ({"use_mm_proj": False}, "use_mm_proj=False"),
        ({"tokenizer_padding_side": "middle"}, "tokenizer_padding_side='middle'.*left"),
        ({"unfreeze_mm_vision_tower": "yes"}, "unfreeze_mm_vision_tower='yes'"),
        ({"image_aspect_ratio": "anyres"}, "image_grid_pinpoints=None"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": "(1x1)"}, r"image_grid_pinpoints='\(1x1\)'"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[56, 100]]}, r"\(56, 100\).*crops of 56x56"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[56, 112, 3]]}, "image_grid_pinpoints="),
    ],
    ids=str,
)
def test_a_field_that_is_not_computed_here_is_refused_by_name(checkpoint, changes, message):
    folder, _ = checkpoint()
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)
    with pytest.raises(ValueError, match=message):
        read_config(str(folder))


def test_the_classes_own_from_pretrained_looks_at_the_fields_too(checkpoint):
    folder, _ = checkpoint()
    change_config(folder, s2=True)
    for load_class in (LlavaLlamaForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="s2=True"):
            load_class.from_pretrained(folder)


@pytest.mark.parametrize("said", [{"mm_tunable_parts": "mm_vision_tower"}, {}], ids=str)
def test_the_classes_own_from_pretrained_uses_a_trained_tower(checkpoint, outputs, same, said):
    folder, model = tuned(checkpoint, **said)
    same(outputs(LlavaLlamaForCausalLM.from_pretrained(folder).eval()), outputs(model))


def test_the_classes_own_from_pretrained_reads_a_folder_in_a_folder(checkpoint, outputs, same):
    folder, model = tuned(checkpoint)
    inside = shutil.copytree(folder, folder.parent / "outer/inner")
    loaded = LlavaLlamaForCausalLM.from_pretrained(inside.parent, subfolder="inner").eval()
    same(outputs(loaded), outputs(model))


def test_a_window_that_llama_does_not_have_is_refused(checkpoint):
    folder, _ = checkpoint()
    change_config(folder, sliding_window=4)
    with pytest.raises(ValueError, match="sliding_window=4, but LLaMA has none"):
        load(folder)
    change_config(folder, drop=["sliding_window"], layer_types=["sliding_attention"] * 2)
    with pytest.raises(ValueError, match="'sliding_attention', but no sliding_window"):
        load(folder)


def test_a_tower_with_more_layers_than_its_config_says_is_refused(checkpoint, tmp_path, tower_of):
    tower = Path(shutil.copytree(tower_of("clip"), tmp_path / "tower"))
    folder, _ = checkpoint()
    change_config(folder, mm_vision_tower=str(tower))
    change_config(tower, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"weights of layers that its config.json does not describe, .*layers\.2\."):
        load(folder)


@pytest.mark.parametrize(
    "lost", ["layers.1.mlp.fc1", "layers.0.mlp.fc2.bias", "patch_embedding", "mm_projector.0.bias"]
)
def test_a_tower_beside_a_projector_is_whole_or_refused(checkpoint, tmp_path, lost):
    whole, model = checkpoint(name="whole")
    folder = tmp_path / "projector"
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    parts = ("mm_projector", "embeddings", "encoder.layers")
    state = {key: value for key, value in model.state_dict().items() if any(part in key for part in parts)}
    torch.save(state, folder / "mm_projector.bin")
    load(folder, whole)
    torch.save({key: value for key, value in state.items() if lost not in key}, folder / "mm_projector.bin")
    with pytest.raises(ValueError, match="weights are missing from"):
        load(folder, whole)


def test_added_tokens_without_weights_are_told(checkpoint, caplog):
    folder, _ = checkpoint()
    tokenizer = load(folder)[0]
    tokenizer.add_tokens(["<never trained>"])
    tokenizer.save_pretrained(folder)
    load(folder)
    assert "1 added tokens that no weights were saved for, <never trained> among them" in caplog.text


def test_fields_that_sound_decisive_are_named_and_records_of_training_are_not(checkpoint, caplog):
    folder, _ = checkpoint()
    change_config(
        folder, mm_projector_lr=2e-5, mm_spatial_pool_stride=2, tune_vit_from_layer=12, mm_resampler_type=None
    )
    load(folder)
    assert not caplog.records
    change_config(folder, mm_dense_connector_type="sti", second_tower="dino")
    load(folder)
    assert "mm_dense_connector_type='sti', second_tower='dino'" in caplog.text


@pytest.mark.parametrize(
    "changes", [{"image_aspect_ratio": "pad"}, {"mm_spatial_pool_stride": 2}, {"use_cache": False}]
)
def test_fields_of_the_config_can_be_overwritten(checkpoint, changes):
    folder, _ = checkpoint(image_aspect_ratio="square")
    config = load_model(folder, overwrite_config=changes).config
    assert {name: getattr(config, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "theta", "kind"),
    [
        ({"rope_theta": 50.0}, 50.0, "default"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 7000.0, "linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 50.0}, 50.0, "linear"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}, 3.0, "default"),
        ({"image_aspect_ratio": "pad"}, 7000.0, "default"),
    ],
    ids=str,
)
def test_old_names_of_the_rotary_embedding_are_heeded_too(checkpoint, changes, theta, kind):
    folder, _ = checkpoint(rope_parameters={"rope_type": "default", "rope_theta": 7000.0})
    now = load_model(folder, overwrite_config=changes).config.rope_parameters
    assert (now["rope_theta"], now["rope_type"]) == (theta, kind)


def test_two_bases_of_the_rotary_embedding_are_refused(checkpoint):
    folder, _ = checkpoint(rope_parameters={"rope_type": "default", "rope_theta": 7000.0})
    change_config(folder, rope_theta=50.0)
    with pytest.raises(ValueError, match=r"rope_theta=50.0, and another one in rope_parameters"):
        load(folder)


def test_what_is_overwritten_is_checked_too(checkpoint):
    folder, _ = checkpoint()
    with pytest.raises(ValueError, match="mm_projector_type='bag'"):
        load(folder, overwrite_config={"mm_projector_type": "bag"})
    with pytest.raises(ValueError, match="overwrite_config='pad'"):
        load(folder, overwrite_config="pad")
    with pytest.raises(ValueError, match=r"customized_config is not taken.*overwrite_config"):
        load(folder, customized_config={"image_aspect_ratio": "pad"})


@pytest.mark.parametrize(
    ("model_type", "architecture", "family"),
    [("share4v", "Share4VLlamaForCausalLM", "llama"), ("llava_med", "LlavaMedMistralForCausalLM", "mistral")],
)
def test_a_fork_of_llava_under_its_own_name(checkpoint, outputs, same, model_type, architecture, family):
    folder, model = checkpoint(family)
    change_config(folder, model_type=model_type, architectures=[architecture])
    same(outputs(load_model(folder)), outputs(model))


# Errors


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize(
    "victim", ["pytorch_model.bin", "mm_projector.bin", "non_lora_trainables.bin", "adapter_model.bin", "tower"]
)
def test_a_pickle_is_never_run(checkpoint, tmp_path, tower_of, victim):
    trap = tmp_path / "trap"
    whole, model = checkpoint(name="whole")
    if victim in ("non_lora_trainables.bin", "adapter_model.bin"):
        folder, _ = lora_of(model, tmp_path / "lora", whole)
        file = folder / victim
        if victim == "adapter_model.bin":
            (folder / "adapter_model.safetensors").unlink()
    elif victim == "mm_projector.bin":
        folder = text_part(whole, tmp_path / "projector")
        shutil.copy(whole / "config.json", folder)
        (folder / WEIGHTS).unlink()
        file = folder / victim
    elif victim == "tower":
        folder = whole
        shutil.copytree(tower_of("clip"), tmp_path / "tower")
        (tmp_path / "tower" / WEIGHTS).unlink()
        change_config(folder, mm_vision_tower="../tower")
        file = tmp_path / "tower/pytorch_model.bin"
    else:
        folder = whole
        (folder / WEIGHTS).unlink()
        file = folder / victim
    torch.save({"model.norm.weight": Evil(trap)}, file)
    with pytest.raises(ValueError, match=rf"{file.name} \(\d+ bytes\) cannot be read.*never run"):
        load(folder, whole)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # it is a real trap
    assert trap.exists()


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
@pytest.mark.parametrize("damage", ["cut", "pointer", "empty"])
def test_damaged_weight_files(checkpoint, name, damage):
    folder, _ = checkpoint()
    if name != WEIGHTS:
        to_bin(folder)
    content = (folder / name).read_bytes()
    content = {"cut": content[: len(content) // 2], "pointer": b"version https://git-lfs\noid sha256:0\n", "empty": b""}
    (folder / name).write_bytes(content[damage])
    with pytest.raises(ValueError, match=rf"{name} \({len(content[damage])} bytes\) cannot be read as tensors.*LFS"):
        load(folder)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_shard_that_is_absent(checkpoint, suffix):
    folder, _ = checkpoint()
    shard(folder, suffix)
    (gone,) = folder.glob("*00002-of-00002*")
    gone.unlink()
    with pytest.raises(ValueError, match=rf"index.json names {gone.name}, but it is not there"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "1.mlp.up" not in k}, r"1 weights are missing.*layers\.1\.mlp\.up"),
        (lambda t: {k: v for k, v in t.items() if "projector" not in k}, r"4 weights are missing.*mm_projector\.0\.b"),
        (lambda t: t | {"model.what.is.this": torch.ones(1)}, r"1 weights are not expected.*model\.what\.is\.this"),
        (lambda t: t | {"model.image_newline": torch.ones(48)}, r"1 weights are not expected.*model\.image_newline"),
        (
            lambda t: t | {"model.norm.weight": torch.ones(47)},
            r"model\.norm\.weight.*\(47,\).*\(48,\).*1 weights differ",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(checkpoint, change, message):
    folder, _ = checkpoint()
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_config_that_makes_no_model(checkpoint):
    folder, _ = checkpoint()
    change_config(folder, num_hidden_layers="many")
    with pytest.raises(ValueError, match=r"config.json: num_hidden_layers is 'many'; expected a whole number"):
        load(folder)


def test_folders_that_are_no_checkpoint(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, found in {
        "empty": "the folder holds nothing",
        "nowhere": "there is no such folder",
        "file": "it is a file",
    }.items():
        with pytest.raises(ValueError, match=rf"No checkpoint at .*{name}.*{found}.*config.json"):
            load(tmp_path / name)
    for name in ("liuhaotian/llava-v1.5-7b", "no-such-model"):
        with pytest.raises(ValueError, match=r"no such folder, and it cannot be fetched as a hub id \(.+\)") as error:
            load(name)
        assert len(str(error.value).splitlines()) == 1
    for name in ("checkpoints/some/folder", "./nowhere", "~/nowhere", "my models/llava"):
        with pytest.raises(ValueError, match=rf"'{name}': there is no such folder\."):
            load(name)

    folder, _ = checkpoint()
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"config.json but no weights.*the folder holds.*mm_projector.bin.*adapter_"):
        load(folder)
    for content, message in {"{": "not JSON", "[]": "a JSON list; expected an object"}.items():
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=rf"config.json.*{message}"):
            load(folder)


@torch.no_grad()
def test_offloaded_parts_answer_as_before(checkpoint, tmp_path):
    """Where a model does not fit, its last parts are offloaded: the projector, and a tower of its own."""
    folder, model = checkpoint(unfreeze_mm_vision_tower=True)
    places = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {"model.mm_projector": "disk", "model.vision_tower": "disk"}
    offloaded = type(model).from_pretrained(folder, device_map=places, offload_folder=tmp_path / "offload")
    assert next(offloaded.get_model().mm_projector.parameters()).is_meta
    images = torch.randn(1, 3, 56, 56)
    for zipped in (False, True):
        if zipped:
            visionzip(model, 5, 2)
            visionzip(offloaded, 5, 2)
        torch.testing.assert_close(offloaded.encode_images(images), model.encode_images(images))


def test_auto_classes_read_our_checkpoints(checkpoint):
    folder, model = checkpoint()
    assert type(AutoConfig.from_pretrained(folder)) is type(model.config)
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is type(model)


def test_a_config_that_names_no_model(checkpoint):
    folder, _ = checkpoint()
    (folder / "config.json").write_text("{}")  # taken for a default LLaMA, it would be 7B of random weights
    with pytest.raises(ValueError, match=r"config\.json has no model_type"):
        load(folder)
