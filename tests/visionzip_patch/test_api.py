"""visionzip, unzip and zipped on LLaVA models: in place, one model at a time, undone without a trace."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava.model.multimodal_encoder.builder import build_vision_tower
from visionzip_patch import VisionZipConfig, unzip, visionzip, zipped
from visionzip_patch.selectors.handpicked import hand_picked
from visionzip_patch.selectors.uniform import pattern


@pytest.fixture
def model(tiny_llava):
    return tiny_llava()


@pytest.fixture
def images():
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_zip_and_unzip_leave_no_trace(model, images):
    before, keys, config = model.encode_images(images), list(model.state_dict()), model.config.to_dict()
    assert visionzip(model, 5, 2) is model
    assert model.encode_images(images).shape[1] == 7
    assert list(model.state_dict()) == keys
    assert model.config.visionzip == VisionZipConfig(5, 2).to_dict()
    assert unzip(model) is model
    assert torch.equal(model.encode_images(images), before)
    assert model.config.to_dict() == config
    unzip(model)  # harmless


@torch.no_grad()
def test_a_second_call_replaces_the_first(model, tiny_llava, images):
    visionzip(visionzip(model, 9, 3), 5, 2)
    assert torch.equal(model.encode_images(images), visionzip(tiny_llava(), 5, 2).encode_images(images))


@torch.no_grad()
def test_models_do_not_touch_each_other(tiny_llava, images):
    plain, first, second = tiny_llava(), tiny_llava(), tiny_llava()
    before = plain.encode_images(images)
    visionzip(first, 5, 2)
    visionzip(second, 9, 0)
    assert first.encode_images(images).shape[1] == 7
    assert second.encode_images(images).shape[1] == 9
    assert torch.equal(plain.encode_images(images), before)


@torch.no_grad()
def test_a_copy_is_zipped_too_and_goes_its_own_way(model, images):
    twin = copy.deepcopy(visionzip(model, 5, 2))
    unzip(model)
    assert twin.encode_images(images).shape[1] == 7
    assert twin.get_vision_tower().reducer == visionzip(model, 5, 2).get_vision_tower().reducer
    unzip(model)
    assert model.encode_images(images).shape[1] == 16


def test_zipped_puts_back_what_was_there(model):
    with zipped(model, 5, 2):
        assert model.get_vision_tower().reducer.tokens() == 7
    assert model.get_vision_tower().reducer is None
    visionzip(model, 9, 3, merge="mean")
    with pytest.raises(KeyError), zipped(model, 5, 2, selector="uniform"):
        raise KeyError
    assert model.config.visionzip == VisionZipConfig(9, 3, merge="mean").to_dict()
    assert model.get_vision_tower().reducer.tokens() == 12


def test_zipped_puts_back_patches_that_were_picked_by_hand(model):
    tower = visionzip(model, 5, 2).get_vision_tower()
    tower.reducer = picked = hand_picked([[1, 2]], 2, tower)
    with zipped(model, 6, 1):
        assert tower.reducer.tokens() == 7
    assert tower.reducer is picked


@torch.no_grad()
def test_without_numbers_the_budget_is_that_of_the_published_code(tiny_llava, golden):
    tower = build_vision_tower(SimpleNamespace(mm_vision_tower=str(golden / "models/clip-tiny-336")))
    large = SimpleNamespace(get_vision_tower=lambda: tower, config=SimpleNamespace())
    visionzip(large)
    assert tower.reducer.tokens() == 191 + 30
    with zipped(large, 54, 10):
        assert tower.reducer.tokens() == 64
    with zipped(large):
        assert large.config.visionzip == VisionZipConfig(191, 30).to_dict()
    visionzip(large, dominant=54)
    assert large.config.visionzip == VisionZipConfig(54, 30).to_dict()
    with pytest.raises(ValueError, match=r"asks for 221 tokens, but the vision tower gives 17"):
        visionzip(tiny_llava())


def test_equal_budgets_of_an_image_are_equal_settings(model):
    assert visionzip(model, tokens_per_image=8).config.visionzip == VisionZipConfig(tokens_per_image=8).to_dict()


@pytest.mark.parametrize("budget", [{"dominant": 5, "contextual": 2, "merge": "mean"}, {"tokens_per_image": 8}])
def test_a_saved_setting_can_be_given_again(model, budget):
    setting = visionzip(model, **budget).config.visionzip
    assert visionzip(unzip(model), **setting).config.visionzip == setting


def test_two_budgets_are_refused_and_the_model_stays_as_it_was(model):
    visionzip(model, 5, 2)
    with pytest.raises(ValueError, match=r"tokens_per_image=8 .* dominant=9 came"):
        visionzip(model, dominant=9, tokens_per_image=8)
    with pytest.raises(ValueError, match=r"tokens_per_image=8 .* dominant=9 and contextual=3"):
        zipped(model, 9, 3, tokens_per_image=8).__enter__()
    assert model.config.visionzip == VisionZipConfig(5, 2).to_dict()


@pytest.mark.parametrize("budget", [(0, 5), (-1, 5), (5, -1), (16, 2), (18, 0), (5, 1.5)])
def test_a_bad_budget_leaves_the_model_as_it_was(model, budget):
    visionzip(model, 5, 2)
    with pytest.raises(ValueError, match=r"dominant|contextual"):
        visionzip(model, *budget)
    assert model.get_vision_tower().reducer.tokens() == 7
    assert model.config.visionzip == VisionZipConfig(5, 2).to_dict()


def test_a_budget_above_the_tower_names_both_numbers(model):
    with pytest.raises(ValueError, match=r"64 tokens.*gives 17"):
        visionzip(model, 54, 10)


@torch.no_grad()
def test_all_tokens_are_a_budget_too(model, images):
    for budget in ((17, 0), (10, 7)):
        tokens = visionzip(model, *budget).get_vision_tower()(images)
        whole = unzip(model).get_vision_tower().hidden_states(images)[1]
        assert torch.equal(tokens.sort(dim=1).values, whole.sort(dim=1).values)


@torch.no_grad()
def test_blind_selectors_choose_the_same_patches_for_every_image(model, images):
    tower = model.get_vision_tower()
    patterns = {}
    for selector, seed in (("random", 0), ("random", 1), ("uniform", 0)):
        visionzip(model, 6, 0, selector=selector, seed=seed)
        kept = tower.select(images).kept
        assert (kept == kept[:1]).all()
        assert torch.equal(tower.select(images[1:2]).kept, kept[:1])
        patterns[selector, seed] = kept[0].tolist()
    assert len({tuple(p) for p in patterns.values()}) == 3
    rows = {(i - 1) // 4 for i in patterns["uniform", 0][1:]}
    columns = {(i - 1) % 4 for i in patterns["uniform", 0][1:]}
    assert min(len(rows), len(columns)) >= 2  # spread in both directions
    visionzip(model, 6, 0)
    assert not (tower.select(images).kept == tower.select(images).kept[:1]).all()


@pytest.mark.parametrize("count", range(1, 17))
@torch.no_grad()
def test_the_uniform_pattern_has_as_many_patches_as_asked_for(model, images, count):
    visionzip(model, count + 1, 0, selector="uniform")
    assert pattern((4, 4), count).sum() == count
    assert model.encode_images(images).shape[1] == count + 1


def test_a_model_without_a_known_tower_is_refused():
    with pytest.raises(TypeError, match="Linear has no vision tower"):
        visionzip(nn.Linear(2, 2))


def test_zipped_keeps_a_setting_that_was_read_but_not_applied(model):
    """transformers' own models come from `from_pretrained` like this."""
    model.config.visionzip = VisionZipConfig(9, 3).to_dict()
    with zipped(model, 5, 2):
        pass
    assert model.config.visionzip == VisionZipConfig(9, 3).to_dict()
    assert model.get_vision_tower().reducer is None
