"""Tokens, embeddings, logits, gradients and answers equal those of the original programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from visionzip_patch import unzip, visionzip

GOLDEN = Path(__file__).parents[1] / "golden"
ENTRIES = {Path(entry["file"]).stem: entry for entry in json.loads((GOLDEN / "index.json").read_text())["tensor_files"]}
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


def of_kind(kind):
    return [name for name, entry in ENTRIES.items() if entry["kind"] == kind]


def thin(tensor, how):
    """Do to a tensor what the name of its stored form says was done there."""
    if how == "sum":
        return tensor.sum(-1)
    for axis, stride in (part.split(":") for part in how.split(",")):
        index = torch.arange(0, tensor.shape[int(axis)], int(stride))
        tensor = tensor.index_select(int(axis), index)
    return tensor


def check(expected, **actual):
    """Every stored form of each tensor that is named."""
    for name, value in actual.items():
        name = name.replace("__", ".")
        forms = [key for key in expected if key.partition("@")[0] == name]
        assert forms, f"no golden values named {name}"
        for key in forms:
            how = key.partition("@")[2]
            value_seen = thin(value, how) if how else value
            if expected[key].is_floating_point():
                torch.testing.assert_close(value_seen, expected[key], **CLOSE, msg=lambda m, key=key: f"{key}: {m}")
            else:
                assert torch.equal(value_seen.long(), expected[key].long()), key


def tensors(name):
    return load_file(GOLDEN / "tensors" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def load():
    loaded = {}

    def get(name, visionzip_setting=None):
        if name not in loaded:
            folder, _, base = name.removesuffix(" (merged)").partition(" on ")
            loaded[name] = load_pretrained_model(
                str(GOLDEN / "models" / folder), str(GOLDEN / "models" / base) if base else None, None
            )
        tokenizer, model, processor, _ = loaded[name]
        unzip(model)
        model.requires_grad_(False)
        if visionzip_setting:
            visionzip(model, **visionzip_setting)
        return tokenizer, model, processor

    return get


def picture(name):
    return Image.open(GOLDEN / "images" / name).convert("RGB")


def prepare(name, processor, config):
    """A picture's pixels; its crops, where they are stored: Pillow 12 and 13 make different ones of that picture."""
    stored = GOLDEN / "crops" / name
    if config.image_aspect_ratio != "anyres" or not stored.exists():
        return process_images([picture(name)], processor, config)
    crops = np.asarray(Image.open(stored)).reshape(-1, 336, 336, 3)
    return processor.preprocess(list(crops), return_tensors="pt")["pixel_values"][None]


@pytest.fixture(scope="module")
def pixels():
    return (tensors("tower_input")["pixel_u8"].float() - 128) / 64


def test_vanilla_tower(load, pixels):
    _, model, _ = load("llava-v1.5-tiny")
    tower = model.get_vision_tower()
    _, after = tower.hidden_states(pixels)
    check(tensors("tower_vanilla"), features=tower(pixels), cls=after[:, :1])


@pytest.mark.parametrize("name", of_kind("tower_visionzip"))
def test_zipped_tower(load, pixels, name):
    _, model, _ = load("llava-v1.5-tiny", ENTRIES[name]["settings"])
    tokens = model.get_vision_tower()(pixels)
    expected = tensors(name)
    check(expected, tokens=tokens, projected_every4=model.encode_images(pixels)[:, ::4])
    kept = model.get_vision_tower().select(pixels).kept
    assert torch.equal(kept, expected["keep_indices"].long().sort(dim=1).values)


@pytest.mark.parametrize("name", of_kind("single_image"))
def test_one_image(load, name):
    entry, expected = ENTRIES[name], tensors(name)
    tokenizer, model, processor = load(entry["model"], entry["visionzip"])
    ids = tokenizer_image_token(entry["prompt"], tokenizer, return_tensors="pt")
    images = prepare(entry["image"], processor, model.config)
    check(expected, input_ids=ids)

    call = {"images": images, "image_sizes": [picture(entry["image"]).size]}
    _, positions, mask, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
        ids[None], None, None, None, None, **call
    )
    assert positions is None
    assert mask is None
    assert embeds.shape[1] == entry["sequence_length"]
    assert embeds.shape[1] - len(ids) + 1 == entry["visual_tokens"]
    for form, value in {
        "inputs_embeds": embeds[0],
        "inputs_embeds_every3": embeds[0][::3],
        "embeds_sum_per_row": embeds[0].sum(-1),
    }.items():
        if any(key.partition("@")[0] == form for key in expected):
            check(expected, **{form: value})
    logits = model(ids[None], **call).logits[0]
    check(expected, logits=logits[expected["logits_rows"].long()])

    out = model.generate(
        ids[None],
        **call,
        do_sample=False,
        max_new_tokens=len(expected["generated"]),
        return_dict_in_generate=True,
        output_logits=True,
    )
    check(expected, generated=out.sequences[0], generate_scores=torch.cat(out.logits))
    if "merged.layers.0.q_proj@-2:11" in expected:
        layers = model.get_model().layers
        check(
            expected,
            merged__layers__0__q_proj=layers[0].self_attn.q_proj.weight,
            merged__layers__1__down_proj=layers[1].mlp.down_proj.weight,
        )


@pytest.mark.parametrize("name", of_kind("two_images_one_prompt"))
def test_two_images_in_one_prompt(load, name):
    entry, expected = ENTRIES[name], tensors(name)
    tokenizer, model, processor = load(entry["model"], entry["visionzip"])
    pictures = [picture(file) for file in entry["images"]]
    images = process_images(pictures, processor, model.config)
    ids = tokenizer_image_token(entry["prompt"], tokenizer, return_tensors="pt")
    check(expected, input_ids=ids)
    embeds = model.prepare_inputs_labels_for_multimodal(ids[None], None, None, None, None, images)[4]
    check(expected, inputs_embeds=embeds[0])
    out = model.generate(ids[None], images=images, do_sample=False, max_new_tokens=8)
    check(expected, generated=out[0])


@pytest.mark.parametrize("name", of_kind("batch2"))
def test_batch_of_two_prompts(load, name, monkeypatch):
    entry, expected = ENTRIES[name], tensors(name)
    _, model, processor = load(entry["model"], entry["visionzip"])
    pictures = [picture(file) for file in entry["images"]]
    images = process_images(pictures, processor, model.config)
    ids, labels = expected["input_ids"].long(), expected["labels"].long()
    attention_mask = expected["attention_mask"]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    variants = entry.get("variants", [{"key": "", "tokenizer_padding_side": "right"}])
    for variant in variants:
        prefix = variant["key"] + "__" if variant["key"] else ""
        monkeypatch.setattr(model.config, "tokenizer_padding_side", variant["tokenizer_padding_side"], raising=False)
        monkeypatch.setattr(
            model.config, "tokenizer_model_max_length", variant.get("tokenizer_model_max_length"), raising=False
        )
        _, out_positions, mask, _, embeds, out_labels = model.prepare_inputs_labels_for_multimodal(
            ids, positions, attention_mask, None, labels, images, [p.size for p in pictures]
        )
        assert mask.sum(1).tolist() == variant.get("valid_lengths", entry.get("valid_lengths"))
        out = model(inputs_embeds=embeds, attention_mask=mask, position_ids=out_positions, labels=out_labels)
        seen = {f"{prefix}embeds_sum_per_row": embeds.sum(-1), f"{prefix}loss": out.loss}
        if prefix:
            last = mask.long().cumsum(1).argmax(1)
            seen |= {
                f"{prefix}position_ids": out_positions,
                f"{prefix}labels": out_labels,
                f"{prefix}attention_mask": mask,
                f"{prefix}last_logits": out.logits[torch.arange(2), last],
            }
        else:
            seen |= {"out_labels": out_labels, "out_attention_mask": mask}
        check(expected, **seen)


@pytest.mark.parametrize("name", of_kind("train_batch"))
def test_training_batch(load, name):
    entry, expected = ENTRIES[name], tensors(name)
    _, model, processor = load(entry["model"], entry["visionzip"])
    images = torch.zeros(3, 3, 336, 336)  # a text-only sample has a dummy
    for i, sample in enumerate(entry["samples"][:2]):
        images[i] = process_images([picture(sample["image"])], processor, model.config)[0]
    batch = {
        "input_ids": expected["input_ids"].long(),
        "attention_mask": expected["attention_mask"],
        "labels": expected["labels"].long(),
        "images": images,
    }
    _, _, mask, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
        batch["input_ids"], None, batch["attention_mask"], None, batch["labels"], images
    )
    check(expected, out_inputs_embeds=embeds, out_attention_mask=mask, out_labels=labels)

    projector, decoder = model.get_model().mm_projector, model.get_model()
    before = {key: value.clone() for key, value in projector.state_dict().items()}
    tables = {"lm_head.weight": model.lm_head.weight, "embed_tokens.weight": decoder.embed_tokens.weight}
    for parameter in [*projector.parameters(), *tables.values()]:
        parameter.grad = None
        parameter.requires_grad_(True)
    out = model(**batch)
    out.loss.backward()
    check(expected, loss=out.loss.detach())
    for i in range(3):
        rows = expected[f"logits_rows.{i}"].long()
        check(expected, **{f"logits__{i}": out.logits[i][mask[i]][rows].detach()})
    for key, parameter in projector.named_parameters():
        check(expected, **{f"grad__mm_projector__{key.replace('.', '__')}": parameter.grad})
    for key, table in tables.items():
        check(expected, **{f"grad__{key.replace('.', '__')}": table.grad[:64]})
        table.requires_grad_(False)

    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = model(**batch, loss_only=True).loss
        losses.append(loss.detach())
        loss.backward()
        if step < 3:
            optimizer.step()
    check(expected, adamw_losses=torch.stack(losses))
    for key, value in projector.state_dict().items():
        check(expected, **{f"adamw_after3__mm_projector__{key.replace('.', '__')}": value})
    projector.load_state_dict(before)


def test_every_tensor_file_is_used():
    used = {"tower_vanilla", "preprocess", *of_kind("tower_visionzip"), *of_kind("single_image")}
    used |= {*of_kind("two_images_one_prompt"), *of_kind("batch2"), *of_kind("train_batch")}
    assert {p.stem for p in (GOLDEN / "tensors").iterdir()} == used | {"tower_input"}


def test_preprocessing(load):
    """Pixels of the three modes; another Pillow may move single pixels by one level in 255, by more in one picture."""
    _, model, processor = load("llava-v1.5-tiny")
    entry, expected = ENTRIES["preprocess"], tensors("preprocess")
    mean, std = (torch.tensor(entry[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))

    def levels(images):
        return (images * std + mean).mul(255).round()

    def close(key_prefix, actual, most=1, on_average=0.01):
        (key,) = [k for k in expected if k.startswith(key_prefix + "@")]
        how = key.partition("@")[2]
        difference = (thin(actual, how) - expected[key].float()).abs()
        assert difference.max() <= most, key
        assert difference.mean() < on_average, key

    config = model.config
    pictures = [picture(item["image"]) for item in entry["images"]]
    names = [item["image"].removesuffix(".png") for item in entry["images"]]
    close("square_u8_stride2", levels(run(pictures, processor, config, image_aspect_ratio="square"))[..., ::2, ::2])
    padded = run(pictures, processor, config, image_aspect_ratio="pad")
    close("pad_u8.first2", levels(padded[:2]))
    close("pad_u8_stride2.last2", levels(padded[2:])[..., ::2, ::2])
    pinpoints = load("llava-v1.6-tiny")[1].config.image_grid_pinpoints
    tiled = run(pictures, processor, config, image_aspect_ratio="anyres", image_grid_pinpoints=pinpoints)
    for item, name, crops in zip(entry["images"], names, tiled, strict=True):
        assert len(crops) == item["tiles"]
        limits = (16, 0.05) if (GOLDEN / "crops" / item["image"]).exists() else ()
        close(f"anyres_u8_stride2.{name}", levels(crops)[..., ::2, ::2], *limits)
        torch.testing.assert_close(crops.mean((2, 3)), expected[f"anyres_mean.{name}"], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(crops.std((2, 3)), expected[f"anyres_std.{name}"], atol=1e-3, rtol=1e-3)


def run(pictures, processor, config, **changes):
    changed = type(config).from_dict({**config.to_dict(), **changes})
    return process_images(pictures, processor, changed)


def test_the_image_token_is_in_every_prompt(load):
    tokenizer, _, _ = load("llava-v1.5-tiny")
    ids = tokenizer_image_token("USER: <image>\nHi <image> there", tokenizer)
    assert ids.count(IMAGE_TOKEN_INDEX) == 2
