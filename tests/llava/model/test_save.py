"""What is saved loads again, bit for bit, under the names that upstream and serving engines read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import save_tokenizer
from visionzip_patch import VisionZipConfig, unzip, visionzip

OWN = {"unfreeze_mm_vision_tower": True}
ANYRES = {
    **OWN,
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}


def load(folder, **kwargs):
    return load_pretrained_model(str(folder), None, None, device="cpu", **kwargs)


def save(loaded, folder, **kwargs):
    tokenizer, model = loaded[:2]
    model.save_pretrained(folder, **kwargs)
    save_tokenizer(tokenizer, folder)
    return folder


def weights_of(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("family", "tower", "options"),
    [
        ("llama", "clip", {}),
        ("llama", "clip", ANYRES),
        ("llama", "siglip", OWN),
        ("mistral", "clip", OWN),
        ("qwen", "siglip", {}),
        ("qwen", "clip", {"tie_word_embeddings": True}),
    ],
)
def test_a_saved_model_is_the_same(checkpoint, outputs, same, tmp_path, family, tower, options):
    folder, model = checkpoint(family, tower, **options)
    first = load(folder)
    second = load(save(first, tmp_path / "saved"))
    same(outputs(second[1]), outputs(model))
    assert second[2].to_dict() == first[2].to_dict()
    assert second[0]("Hello  world </s> a").input_ids == first[0]("Hello  world </s> a").input_ids
    assert config_of(folder) == config_of(tmp_path / "saved")
    assert weights_of(folder).keys() == weights_of(tmp_path / "saved").keys()


@pytest.mark.parametrize("name", ["llava-v1.5-tiny", "llava-v1.6-tiny"])
def test_names_are_those_of_published_files(golden, tmp_path, name):
    loaded = load(golden / "models" / name)
    before = weights_of(golden / "models" / name)
    after = weights_of(save(loaded, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    own = [key for key in after if "vision_tower" in key]
    assert all(key.startswith("model.vision_tower.vision_tower.vision_model.") for key in own)
    assert bool(own) == (name == "llava-v1.6-tiny")
    assert (tmp_path / "tokenizer.model").exists()


def test_a_folder_with_its_own_tower_stands_alone(checkpoint, outputs, same, tmp_path, tower_of):
    """Saved, moved, and the tower it came from gone."""
    shutil.copytree(tower_of("clip"), tmp_path / "origin")
    folder, model = checkpoint(mm_vision_tower=str(tmp_path / "origin"), **OWN)
    expected = outputs(model)
    shutil.rmtree(tmp_path / "origin")
    shutil.move(folder, tmp_path / "moved")
    values = config_of(tmp_path / "moved")
    assert values["mm_vision_tower_config"]["model_type"] == "clip_vision_model"
    assert values["mm_vision_tower"] == str(tmp_path / "origin")  # upstream reads only this
    _, loaded, processor, _ = load(tmp_path / "moved")
    same(outputs(loaded), expected)
    assert processor.crop_size["height"] == 56


def test_a_relative_tower_is_found_after_saving_elsewhere(checkpoint, outputs, same, tmp_path, tower_of):
    folder, model = checkpoint()
    shutil.copytree(tower_of("clip"), folder / "tower")
    values = config_of(folder)
    (folder / "config.json").write_text(json.dumps({**values, "mm_vision_tower": "tower"}))
    again = load(save(load(folder), tmp_path / "deep/er/saved"))
    same(outputs(again[1]), outputs(model))


def test_the_budget_is_saved_and_comes_back(checkpoint, outputs, same, tmp_path):
    folder, _ = checkpoint(**ANYRES)
    loaded = load(folder)
    whole = outputs(loaded[1])
    visionzip(loaded[1], dominant=5, contextual=2, merge="mean")
    expected = outputs(loaded[1])
    saved = save(loaded, tmp_path / "saved")
    setting = config_of(saved)["visionzip"]
    assert setting == VisionZipConfig(5, 2, merge="mean").to_dict()

    again = load(saved)[1]
    assert len(outputs(again)[0]) == 6 + 7
    same(outputs(again), expected)
    other = load(saved, visionzip=VisionZipConfig(9, 3))[1]
    assert len(outputs(other)[0]) == 6 + 12
    assert other.config.visionzip == VisionZipConfig(9, 3).to_dict()
    same(outputs(unzip(again)), whole)
    again.save_pretrained(saved)
    assert "visionzip" not in config_of(saved)


def test_a_setting_that_cannot_be_read_is_named(checkpoint):
    folder, _ = checkpoint()
    values = {**config_of(folder), "visionzip": {"dominant": 5, "contextual": 2, "colour": "red"}}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"Unknown VisionZip setting colour; known are dominant"):
        load(folder)
    assert load(folder, visionzip=VisionZipConfig(5, 2))[1].config.visionzip["dominant"] == 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays(checkpoint, outputs, same, tmp_path, dtype):
    loaded = load(checkpoint(**OWN)[0], dtype=dtype)
    saved = save(loaded, tmp_path / "saved")
    assert {str(value.dtype) for value in weights_of(saved).values()} == {f"torch.{dtype}"}
    same(outputs(load(saved, dtype=dtype)[1]), outputs(loaded[1]))


def test_a_model_in_hugging_faces_format(tmp_path, add_tokenizer, sizes, shaken, outputs, same):
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=56, patch_size=14),
        text_config=LlamaConfig(**sizes),
        image_grid_pinpoints=ANYRES["image_grid_pinpoints"],
        image_token_index=999,
    )
    torch.manual_seed(0)
    shaken(LlavaNextForConditionalGeneration(config)).save_pretrained(tmp_path / "hf")
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56).save_pretrained(tmp_path / "hf")
    first = load(add_tokenizer(tmp_path / "hf"))
    expected = outputs(first[1])
    saved = save(first, tmp_path / "saved")
    assert {"model.image_newline", "model.mm_projector.2.bias"} < weights_of(saved).keys()
    assert "text_config" not in config_of(saved)
    shutil.rmtree(tmp_path / "hf")
    again = load(saved)[1]
    same(outputs(again), expected)
    assert [[h, w] for w, h in again.config.image_grid_pinpoints] == ANYRES["image_grid_pinpoints"]


def test_shards_and_what_they_replace(checkpoint, outputs, same):
    """One file, many, fewer, one again, into the same folder: what an earlier save left is gone."""
    folder, model = checkpoint(**OWN)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "mm_projector.bin").write_bytes(b"kept")
    loaded, expected, counts = load(folder), outputs(model), []
    for size in ("100KB", "200KB", "1GB"):
        save(loaded, folder, max_shard_size=size)
        files = {file.name for file in folder.glob("*model*") if "tokenizer" not in file.name}
        shards = {name for name in files if name.endswith(".safetensors")}
        counts.append(len(shards))
        index = {"model.safetensors.index.json"} if len(shards) > 1 else set()
        assert files == {*shards, *index}
        if index:
            assert set(json.loads((folder / index.pop()).read_text())["weight_map"].values()) == shards
        same(outputs(load(folder)[1]), expected)
    assert counts[0] > counts[1] > counts[2] == 1
    assert (folder / "mm_projector.bin").read_bytes() == b"kept"


@pytest.mark.parametrize("at_call", [1, 3])
def test_an_interrupted_save_leaves_the_old_files(checkpoint, outputs, same, monkeypatch, at_call):
    from transformers import modeling_utils

    folder, model = checkpoint(**OWN)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    loaded = load(folder)[1]
    for parameter in loaded.parameters():
        parameter.data += 1
    write, calls = modeling_utils.safe_save_file, []

    def fail(tensors, file, **kwargs):
        calls.append(file)
        if len(calls) == at_call:
            with open(file, "wb") as half:
                half.write(b"half")
            raise OSError("No space left on device")
        write(tensors, file, **kwargs)

    monkeypatch.setattr(modeling_utils, "safe_save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        loaded.save_pretrained(folder, max_shard_size="100KB")
    assert len(calls) == at_call
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    same(outputs(load(folder)[1]), outputs(model))


def test_one_process_of_many_writes(checkpoint, tmp_path):
    model = checkpoint(**OWN)[1]
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not list((tmp_path / "other").iterdir())


def test_the_weights_of_a_state_dict(checkpoint, tmp_path):
    """As trainers pass it, gathered from elsewhere."""
    model = checkpoint(**OWN)[1]
    state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "zeros", state_dict=state)
    saved = weights_of(tmp_path / "zeros")
    assert len(saved) == len(state)
    assert not any(value.any() for value in saved.values())


def test_sampling_settings_of_published_checkpoints_do_not_stop_a_save(checkpoint, tmp_path):
    """Vicuna's generation_config.json has a temperature without do_sample; some transformers refuse that."""
    folder, _ = checkpoint()
    settings = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    loaded = load(folder)
    again = load(save(loaded, tmp_path / "saved"))[1]
    assert loaded[1].generation_config.temperature == 0.9  # of the model in hand nothing is lost
    assert again.generation_config.temperature is None
    assert again.generation_config.eos_token_id == 2


def test_a_model_that_was_loaded_from_the_folder_before_stays_as_it_was(checkpoint, outputs, same):
    """On a CPU its weights are the old file, mapped into memory."""
    folder, _ = checkpoint(**OWN)
    first, second = load(folder), load(folder)
    expected = [tensor.clone() for tensor in outputs(first[1])]
    for parameter in second[1].parameters():
        parameter.data = parameter.data + 0.1
    save(second, folder)
    same(outputs(first[1]), expected)
    same(outputs(load(folder)[1]), outputs(second[1]))
