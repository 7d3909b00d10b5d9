"""Other programs' methods in the place of LLaVA's take effect in `generate`, or a warning says that they do not."""

import pytest
import torch

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from visionzip_patch import visionzip

PINPOINTS = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[56, 112]], "mm_patch_merge_type": "spatial"}
IDS = torch.tensor([[1, 40, 50, -200, 60, 70, 80]])


@pytest.fixture(params=["one tensor", "a list of tiles"])
def images(request):
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    if request.param == "one tensor":
        return {"images": pixels[:1]}
    return {"images": [pixels], "image_sizes": [(56, 112)]}


def twice(function):
    return lambda *args, **kwargs: 2 * function(*args, **kwargs)


def ask(model, images, fast=None):
    return model.generate(IDS, **images, fast=fast, do_sample=False, max_new_tokens=4).tolist()


@pytest.mark.parametrize("fast", [None, "static"])
@pytest.mark.parametrize(
    "change", ["encode_images", "forward of the tower", "forward of its class", "hook on the tower"]
)
def test_a_change_of_what_an_image_becomes_takes_effect(checkpoint, monkeypatch, caplog, images, change, fast):
    _, model = checkpoint(**PINPOINTS)
    tower, before = model.get_vision_tower(), ask(model, images)
    if change == "encode_images":
        model.encode_images = twice(model.encode_images)
    elif change == "forward of the tower":
        tower.forward = twice(tower.forward)
    elif change == "forward of its class":
        monkeypatch.setattr(CLIPVisionTower, "forward", lambda tower, images: 2 * tower.features(images).tokens)
    else:
        tower.register_forward_hook(lambda module, args, output: 2 * output)
    changed = ask(model, images, fast)
    assert changed != before
    plain = model.get_model().mm_projector
    for name in ("encode_images", "forward"):  # the same by hand
        vars(model).pop(name, None)
    vars(tower).pop("forward", None)
    monkeypatch.undo()
    tower._forward_hooks.clear()
    if change == "encode_images":
        plain.register_forward_hook(lambda module, args, output: 2 * output)
    else:
        plain.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    assert ask(model, images) == changed
    assert not caplog.records


@pytest.mark.parametrize("change", ["encode_images", "hook on the tower"])
def test_a_change_takes_effect_where_the_engine_would_run_the_tower(checkpoint, images, change):
    _, model = checkpoint(**PINPOINTS)
    engine, given = model.engine("graphs"), (images["images"], images.get("image_sizes"))
    (before,) = engine.image_features(*given)
    if change == "encode_images":
        model.encode_images = twice(model.encode_images)
        expected = 2 * before
    else:
        model.get_vision_tower().register_forward_hook(lambda module, args, output: 0 * output)
        expected = model.project(torch.zeros(1, 1, model.config.mm_hidden_size))[0].expand_as(before)
    torch.testing.assert_close(engine.image_features(*given)[0], expected)


def test_a_change_that_takes_no_effect_is_told_once(checkpoint, caplog, images):
    _, model = checkpoint(**PINPOINTS)
    before = ask(model, images)
    model.get_vision_tower().vision_tower.register_forward_hook(lambda module, args, output: None)
    assert ask(model, images) == ask(model, images) == before
    assert [record.message.split(" of another")[0] for record in caplog.records] == ["CLIPVisionModel has hooks"]


def test_a_replaced_forward_of_transformers_class_is_told(checkpoint, monkeypatch, caplog, images):
    _, model = checkpoint(**PINPOINTS)
    encoder = type(model.get_vision_tower().vision_tower)
    monkeypatch.setattr(encoder, "forward", lambda *args, **kwargs: None)
    ask(model, images)
    assert "CLIPVisionModel has a forward of another program" in caplog.text


def test_a_hook_on_a_zipped_tower_is_told_where_it_takes_no_effect(checkpoint, caplog):
    _, model = checkpoint(**PINPOINTS)
    visionzip(model, dominant=4, contextual=2)
    seen = []
    model.get_vision_tower().register_forward_hook(lambda module, args, output: seen.append(output.shape))
    pixels = torch.randn(3, 3, 56, 56)
    ask(model, {"images": pixels[:1]})
    assert seen == [(1, 6, 32)]
    assert not caplog.records
    ask(model, {"images": [pixels], "image_sizes": [(56, 112)]})
    assert len(seen) == 1
    assert "takes no effect on images in a list, because VisionZip" in caplog.text


def test_accelerates_hooks_are_nobodys_change(checkpoint, caplog, images):
    from accelerate.hooks import ModelHook, add_hook_to_module

    _, model = checkpoint(**PINPOINTS)
    before = ask(model, images)
    for module in (model.get_vision_tower(), model.get_vision_tower().vision_tower):
        add_hook_to_module(module, ModelHook())
    assert ask(model, images) == before
    assert not caplog.records


def test_hooks_of_what_cuts_up_or_compiles_modules_are_nobodys_change(checkpoint, caplog, images):
    """DeepSpeed's ZeRO-3 hooks every module to gather its weights."""
    _, model = checkpoint(**PINPOINTS)
    before = ask(model, images)

    def gather(module, args):
        pass

    gather.__module__ = "deepspeed.runtime.zero.parameter_offload"
    for module in (model.get_vision_tower(), model.get_vision_tower().vision_tower):
        module.register_forward_pre_hook(gather)
    assert ask(model, images) == before
    assert not model.has_changed_encoding()
    assert not caplog.records


@pytest.mark.parametrize("part", ["feature_select", "inner encoder"])
def test_what_upstreams_tower_would_call_is_told_to_be_idle(checkpoint, caplog, images, part):
    _, model = checkpoint(**PINPOINTS)
    before, tower = ask(model, images), model.get_vision_tower()
    if part == "feature_select":
        tower.feature_select = lambda outputs: 0 * outputs.hidden_states[-1]
    else:
        tower.vision_tower.encoder.register_forward_hook(lambda module, args, output: None)
    assert ask(model, images) == before
    assert {"feature_select": "feature_select", "inner encoder": "CLIPEncoder has hooks"}[part] in caplog.text


@pytest.mark.parametrize("change", ["decoder", "hook on the decoder", "model"])
def test_another_forward_of_the_language_model_is_not_passed_by_in_a_fast_mode(checkpoint, caplog, images, change):
    _, model = checkpoint(**PINPOINTS)
    calls = []

    def counted(forward):
        def run(*args, **kwargs):
            calls.append(1)
            return forward(*args, **kwargs)

        return run

    if change == "hook on the decoder":
        model.model.register_forward_hook(lambda module, args, output: calls.append(1))
    else:
        changed = model.model if change == "decoder" else model
        changed.forward = counted(changed.forward)
    ask(model, images, fast="static")
    assert calls
    assert "another program's forward or hooks of the language model" in caplog.text
