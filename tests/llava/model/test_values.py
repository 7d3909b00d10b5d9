"""A checkpoint whose small files are broken is refused with a ValueError that names file and field."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model
from llava.model.library_errors import blaming
from llava.utils.files import read_object, without_contradiction

GONE = object()
ANY = {  # of every kind that JSON knows, and beyond what a size can be
    "null": None,
    "text": "x",
    "negative": -1,
    "zero": 0,
    "list": [],
    "object": {},
    "infinite": float("inf"),
    "huge": 10**400,
    "long": 10**12,
    "true": True,
    "fraction": 1.5,
    "NUL": "a\0b",
    "half a pair": "\ud800",
    "gone": GONE,
}


@pytest.fixture
def folders(golden, tmp_path):
    """Makes a writable copy of golden folders side by side; weights are linked."""

    def copy(*names) -> Path:
        for name in names:
            (tmp_path / name).mkdir()
            for file in (golden / "models" / name).iterdir():
                if file.suffix == ".json":
                    shutil.copy(file, tmp_path / name)
                else:
                    (tmp_path / name / file.name).symlink_to(file)
        return tmp_path / names[0]

    return copy


@pytest.fixture
def folder(folders):
    return folders("llava-v1.5-tiny", "clip-tiny-336")


def load(folder, **kwargs):
    return load_pretrained_model(str(folder), device="cpu", **kwargs)


def change(file: Path, **fields) -> None:
    values = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not GONE}))


@pytest.mark.parametrize(
    ("file", "field", "value", "said"),
    [
        ("config.json", "hidden_size", 0, "is 0; expected a whole number from 1"),
        ("config.json", "hidden_size", 10**12, "is 1000000000000; expected a whole number from 1"),
        ("config.json", "hidden_size", 64.0, "is 64.0; expected a whole number"),
        ("config.json", "num_hidden_layers", 10**9, "is 1000000000; expected a whole number from 1 to 1024"),
        ("config.json", "vocab_size", "many", "is 'many'; expected a whole number"),
        ("config.json", "vocab_size", [1000], "is [1000]; expected a whole number"),
        ("config.json", "num_attention_heads", 5, "is 5, not a divisor of hidden_size = 64"),
        ("config.json", "num_key_value_heads", 3, "is 3, not a divisor of num_attention_heads = 4"),
        ("config.json", "torch_dtype", "floaty", "is 'floaty'; expected one of float16, bfloat16"),
        ("config.json", "dtype", "floaty", "is 'floaty'; expected one of float16, bfloat16"),
        ("config.json", "hidden_act", "silly", "is 'silly'; expected one of "),
        (
            "config.json",
            "rope_scaling",
            {"type": "elastic", "factor": 2.0},
            "rope_scaling: type is 'elastic'; expected",
        ),
        ("config.json", "rope_scaling", "linear", "is 'linear'; expected an object"),
        ("config.json", "quantization_config", {"quant_method": "magic"}, "magic"),
        ("config.json", "quantization_config", "magic", "is 'magic'; expected an object"),
        ("config.json", "layer_types", ["full_attention"], "has 1 entries, but num_hidden_layers is 2"),
        ("config.json", "num_labels", 10**12, "is 1000000000000; expected a whole number from 0"),
        ("config.json", "architectures", 7, "is 7; expected a list of text"),
        ("config.json", "mm_vision_tower", 7, "is 7; expected the name of a folder or hub id"),
        ("config.json", "mm_vision_tower", "a\0b", "expected the name of a folder or hub id"),
        ("config.json", "mm_vision_tower", "y" * 5000, "mm_vision_tower='yyyy"),
        ("config.json", "pad_token_id", 2000, "llava-v1.5-tiny"),  # transformers' own check
        ("generation_config.json", "temperature", "warm", "is 'warm'; expected a number from 0"),
        ("generation_config.json", "eos_token_id", ["</s>"], "expected a whole number"),
        ("generation_config.json", "max_length", [], "is []; expected a whole number"),
        ("tokenizer_config.json", "model_max_length", "long", "is 'long'; expected a number"),
        ("tokenizer_config.json", "bos_token", 1, "is 1; expected a token"),
        ("tokenizer_config.json", "added_tokens_decoder", {"3": 4}, "an object whose values are each a token"),
        ("special_tokens_map.json", "eos_token", {"text": "</s>"}, "expected a token"),
        ("../clip-tiny-336/config.json", "patch_size", 0, "is 0; expected a whole number from 1"),
        ("../clip-tiny-336/config.json", "patch_size", 400, "is 400, but an image has image_size = 336"),
        ("../clip-tiny-336/config.json", "num_channels", 1, "is 1; expected 3"),
        ("../clip-tiny-336/config.json", "hidden_act", "silly", "is 'silly'; expected one of "),
        ("../clip-tiny-336/config.json", "model_type", ["clip"], "is ['clip']; expected text"),
        ("../clip-tiny-336/preprocessor_config.json", "crop_size", "336", "is '336'; expected a whole number"),
        ("../clip-tiny-336/preprocessor_config.json", "crop_size", 224, "takes 3 x 336 x 336"),
        ("../clip-tiny-336/preprocessor_config.json", "size", {"edge": 336}, "makes no image processor"),
        ("../clip-tiny-336/preprocessor_config.json", "image_mean", [0.5, 0.5], "expected a list of 3 times a number"),
        ("../clip-tiny-336/preprocessor_config.json", "image_std", [0.5, 0.5, 0], "image_std"),
    ],
)
def test_a_field_of_another_kind_is_named(folder, file, field, value, said):
    change(folder / file, **{field: value})
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load(folder)
    assert Path(file).name in str(error.value) or folder.name in str(error.value)


FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("../clip-tiny-336/config.json", "../clip-tiny-336/preprocessor_config.json"),
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ANY)
def test_no_value_of_a_field_is_a_mistake_of_the_program(folder, file, kind):
    """A sample: one field for each kind of value. What is raised but ValueError and ImportError fails."""
    values = json.loads((folder / file).read_text())
    field = sorted(values)[sum((file + kind).encode()) % len(values)]
    change(folder / file, **{field: ANY[kind]})
    said = Path(file).name
    with contextlib.suppress(ImportError):
        try:
            load(folder)
        except ValueError as error:
            said = str(error)
    assert any(name in said for name in (Path(file).name, "llava-v1.5-tiny", "clip-tiny-336")), field


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' * 100_000, "not JSON"),
        ('{"model_type": "llama"}'.encode("utf-16"), "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -Infinity}', "-Infinity is no finite number"),
        (b'{"a": 1e400}', "1e400 is no finite number"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (rb'{"a": "\ud800"}', "half of a surrogate pair"),
        (b"[1]", "found a JSON list; expected an object"),
        (b"null", "found a JSON NoneType; expected an object"),
    ],
    ids=["empty", "lists", "objects", "UTF-16", "bytes", "NaN", "Infinity", "1e400", "twice", "half", "list", "null"],
)
def test_a_file_that_is_no_json_object_is_named(folder, file, content, said):
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(Path(file).name)}: .*{re.escape(said)}"):
        load(folder)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}


def test_a_small_file_is_small(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes; expected a small JSON file"):
        read_object(tmp_path / "config.json")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_read(folder, make):
    (folder / "config.json").unlink()
    make(folder / "config.json")
    ending = "/" if make is Path.mkdir else r" \(no file\)"
    with pytest.raises(ValueError, match=rf"No checkpoint.*the folder holds config\.json{ending}"):
        load(folder)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "y" * 5000, "nowhere/" + "y" * 300])
def test_names_that_no_file_system_takes(name):
    with pytest.raises(ValueError, match="No checkpoint at"):
        load(name)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "has no weight_map"),
        ({"metadata": None, "weight_map": {"lm_head.weight": "a.safetensors"}}, "has no metadata"),
        ({"weight_map": ["model.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"lm_head.weight": 1}}, "has no weight_map"),
        (
            {"weight_map": {"lm_head.weight": "../vicuna-tiny/model.safetensors"}},
            "expected the name of a file beside it",
        ),
        ({"weight_map": {"lm_head.weight": "/etc/passwd"}}, "'/etc/passwd'; expected the name of a file beside it"),
        ({"weight_map": {"lm_head.weight": ".."}}, "'..'; expected the name of a file beside it"),
        ({"weight_map": {"lm_head.weight": "b.safetensors"}}, "names b.safetensors, but it is not there"),
        ({"weight_map": {"lm_head.weight": "a.safetensors"}}, "weights are missing from"),
    ],
)
def test_an_index_that_is_none(folder, index, said):
    weights = folder / "model.safetensors"
    save_file({"lm_head.weight": load_file(weights)["lm_head.weight"]}, folder / "a.safetensors")
    weights.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}} | index))
    with pytest.raises(ValueError, match=re.escape(said)):
        load(folder)


def test_weights_of_a_type_that_is_not_known(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content.replace(b'"F32"', b'"Q32"'))
    with pytest.raises(ValueError, match=r"model\.safetensors \(\d+ bytes\) cannot be read as tensors \(.*Q32"):
        load(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(folder):
    change(folder / "config.json", vocab_size=900)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:900].clone()
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"a vocabulary of 1000 tokens, but the model's embeddings have 900 rows"):
        load(folder)


def test_a_special_token_that_the_model_has_no_row_for(folder):
    (folder / "special_tokens_map.json").unlink()
    change(folder / "tokenizer_config.json", bos_token="<begin>")
    with pytest.raises(ValueError, match=r"bos_token '<begin>' = 1000, but the model's embeddings have 1000 rows"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"r": "many"}, "adapter_config.json: r is 'many'; expected a whole number"),
        ({"peft_type": "MAGIC"}, "MAGIC"),
        ({"peft_type": GONE}, "adapter_config.json has peft_type=None"),
        ({"target_modules": 7}, "target_modules is 7"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path is 7"),
    ],
)
def test_a_broken_adapter_config(folders, content, said):
    folder = folders("llava-v1.5-tiny-lora", "vicuna-tiny", "clip-tiny-336")
    change(folder / "adapter_config.json", **content)
    with pytest.raises(ValueError, match=re.escape(said)):
        load(folder)


def test_mistakes_of_our_own_are_not_blamed_on_files():
    with pytest.raises(TypeError), blaming("config.json"):
        without_contradiction(7)
    with pytest.raises(ValueError, match=r"config\.json: KeyError \('x'\)"), blaming("config.json"):
        torch.nn.ModuleDict()["x"]
