"""A selector is a function and a line in the table, whether it ranks or not; each finds what it declares, no more."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from tests.visionzip_patch.test_adapters import inputs_for, make_model
from visionzip_patch import VisionZipConfig, compress, select, visionzip
from visionzip_patch.api import find_tower
from visionzip_patch.evidence import Evidence
from visionzip_patch.reducer import VisionZip
from visionzip_patch.selectors import SELECTORS, Selector
from visionzip_patch.selectors.keeping import keep
from visionzip_patch.selectors.uniform import pattern


def least_alike(evidence, dominant, contextual):
    """No ranking: one after the other, the token that is least like those that are kept already, from the first on."""
    unit = F.normalize(evidence.features.float(), dim=-1)
    is_kept = torch.zeros(evidence.batch, evidence.length, dtype=torch.bool)
    is_kept[:, 0] = True
    for _ in range(dominant - 1):
        likeness = (unit @ unit.mT).masked_fill(~is_kept[:, None], -2).amax(-1)
        is_kept.scatter_(1, likeness.masked_fill(is_kept, 3).argmin(1, keepdim=True), True)
    return keep(evidence, is_kept, dominant, contextual)


def least_alike_by_hand(tokens, count):
    kept = [0]
    while len(kept) < count:
        likeness = {
            i: max(F.cosine_similarity(tokens[i], tokens[j], dim=0).item() for j in kept)
            for i in range(len(tokens))
            if i not in kept
        }
        kept.append(min(likeness, key=likeness.get))
    return sorted(kept)


@pytest.fixture
def added(monkeypatch):
    """The table with one more selector."""
    line = Selector(least_alike, needs=frozenset({"features", "keys"}), label="least alike", help="what differs most")
    monkeypatch.setitem(SELECTORS, "least_alike", line)


@pytest.fixture
def images():
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("added")
@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_function_and_a_line_are_a_selector_of_llavas_towers(tiny_llava, images, kind):
    model = tiny_llava(tower=kind)
    tower = model.get_vision_tower()
    whole = tower.hidden_states(images)[1]
    visionzip(model, 6, 3, selector="least_alike")
    selection = tower.select(images)
    assert selection.kept.tolist() == [least_alike_by_hand(tokens, 6) for tokens in whole]
    tokens = tower(images)
    assert torch.equal(tokens[:, :6], whole.gather(1, selection.kept[..., None].expand(-1, -1, whole.shape[-1])))
    assert tokens.shape[1] == 9

    saved = json.loads(json.dumps(model.config.visionzip))  # as config.json keeps it
    assert saved["selector"] == "least_alike"
    again = tiny_llava(tower=kind, visionzip=saved)
    assert torch.equal(again.get_vision_tower()(images), tokens)


@pytest.mark.usefixtures("added")
@torch.no_grad()
@pytest.mark.parametrize("kind", ["llava", "llava_next", "siglip"])
def test_a_function_and_a_line_are_a_selector_of_transformers_models(tmp_path, kind):
    model, inputs = make_model(kind), inputs_for(kind)
    usual = visionzip(model, 6, 3).model.get_image_features(**pictures(inputs)).pooler_output
    features = visionzip(model, 6, 3, selector="least_alike").model.get_image_features(**pictures(inputs)).pooler_output
    assert [len(image) for image in features] == [len(image) for image in usual]
    assert not torch.equal(features[0], usual[0])

    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    visionzip(again, **again.config.visionzip)
    found = again.model.get_image_features(**pictures(inputs)).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(found, features, strict=True))


def pictures(inputs):
    return {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}


def test_an_unknown_name_lists_the_table(tiny_llava):
    with pytest.raises(
        ValueError, match=r"selector='least_alike' is unknown; choose one of visionzip, random, uniform"
    ):
        visionzip(tiny_llava(), 6, 3, selector="least_alike")


def evidence_of(batch=2, patches=16, *, has_cls=True, **sources):
    generator = torch.Generator().manual_seed(0)
    length = patches + has_cls
    keys, scores = torch.randn(batch, length, 8, generator=generator), torch.rand(batch, patches, generator=generator)
    sources = {"saliency": lambda: scores, "keys": lambda: keys, **sources}
    return Evidence(torch.randn(batch, length, 12, generator=generator), has_cls=has_cls, **sources)


class Size:
    """As much of a tower as a reducer asks for."""

    reducer, num_patches = None, 16

    def __init__(self, has_cls=True, gives=("saliency", "keys", "features")):
        self.has_cls, self.gives = has_cls, frozenset(gives)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize(("dominant", "contextual"), [(1, 0), (5, 2), (9, 7), (16, 0)])
@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_keeps_as_many_tokens_as_it_is_asked_for(name, dominant, contextual, has_cls):
    evidence = evidence_of(has_cls=has_cls)
    kept, targets, others, _ = VisionZip(VisionZipConfig(dominant, contextual, selector=name), Size(has_cls)).select(
        evidence
    )
    assert (kept.shape, targets.shape) == ((2, dominant), (2, contextual))
    assert (kept.diff() > 0).all()
    if contextual:
        everything = torch.cat([kept, targets, others], dim=1).sort(dim=1).values
        assert torch.equal(everything, torch.arange(evidence.length).expand(2, -1))


@pytest.mark.parametrize("has_cls", [True, False])
def test_visionzips_selector_is_the_published_algorithm(has_cls):
    evidence = evidence_of(has_cls=has_cls)
    reducer = VisionZip(VisionZipConfig(5, 2, merge="mean"), Size(has_cls))
    scores = evidence.keys, evidence.saliency
    for found, expected in zip(reducer.select(evidence), select(*scores, dominant=5, contextual=2), strict=True):
        assert torch.equal(found, expected)
    tokens = reducer.reduce(evidence, evidence.features).tokens
    expected = compress(evidence.features, *scores, dominant=5, contextual=2, merge="mean")
    assert torch.equal(tokens, expected)


def test_what_no_one_asks_for_is_not_computed():
    def refuse():
        raise AssertionError("nobody needs this")

    for config, unneeded in (
        (VisionZipConfig(5, 0, selector="uniform"), ("keys", "saliency")),
        (VisionZipConfig(5, 2, selector="uniform"), ("saliency",)),
        (VisionZipConfig(5, 0), ("keys",)),
    ):
        evidence = evidence_of(**dict.fromkeys(unneeded, refuse))
        assert VisionZip(config, Size()).select(evidence).kept.shape == (2, 5)


def test_what_is_asked_for_twice_is_computed_once():
    seen = []
    evidence = evidence_of(words=lambda: seen.append(1) or torch.zeros(3, 4))
    part = evidence.only(frozenset({"words"}))
    assert part.words is part.words is evidence.words
    assert seen == [1]


def test_evidence_that_is_not_there_is_refused_by_name():
    evidence = evidence_of()
    with pytest.raises(ValueError, match="no evidence 'projected' here, only features, saliency, keys"):
        _ = evidence.projected
    with pytest.raises(ValueError, match="no evidence 'keys' here, only saliency"):
        _ = evidence.only(frozenset({"saliency"})).keys
    with pytest.raises(ValueError, match="16 patches are no grid of 3 x 5"):
        Evidence(torch.zeros(1, 17, 4), has_cls=True, grid=(3, 5))


def test_a_selector_that_needs_what_a_tower_does_not_give_is_refused_before_any_image(monkeypatch, tiny_llava):
    reader = Selector(least_alike, needs=frozenset({"words", "keys"}), label="a reader", help="what is asked about")
    monkeypatch.setitem(SELECTORS, "reader", reader)
    model = tiny_llava()
    with pytest.raises(ValueError, match="a reader needs words, but this vision tower gives only features, keys, sal"):
        visionzip(model, 5, 2, selector="reader")
    assert model.get_vision_tower().reducer is None


def test_a_selector_that_keeps_another_number_is_refused():
    short = Selector(
        lambda evidence, dominant, contextual: least_alike(evidence, dominant - 1, contextual),
        needs=frozenset({"features", "keys"}),
        label="short",
        help="one less",
    )
    with pytest.raises(ValueError, match=r"short was asked for 5 \+ 2 tokens of a crop, but chose 4 \+ 2"):
        VisionZip(VisionZipConfig(5, 2), Size(), short).select(evidence_of())


def test_tokens_cannot_be_merged_without_keys():
    evidence = Evidence(torch.randn(1, 17, 4), has_cls=True)
    assert VisionZip(VisionZipConfig(5, 0, selector="random"), Size()).select(evidence).kept.shape == (1, 5)
    with pytest.raises(ValueError, match="no evidence 'keys'"):
        VisionZip(VisionZipConfig(5, 2, selector="random"), Size()).select(evidence)


def test_projected_patches_are_those_that_the_language_model_gets():
    model = make_model()
    assert isinstance(model, LlavaForConditionalGeneration)
    found = []

    def watch(evidence, dominant, contextual):
        found.append(evidence.projected)
        return least_alike(evidence, dominant, contextual)

    watching = Selector(watch, frozenset({"projected", "features", "keys"}), label="watching", help="")
    with torch.no_grad():
        inputs = pictures(inputs_for("llava"))
        whole = model.model.get_image_features(**inputs).pooler_output[0]
        tower = find_tower(model)
        tower.reducer = VisionZip(VisionZipConfig(5, 2), tower, watching)
        model.model.get_image_features(**inputs)
    torch.testing.assert_close(found[0][0], whole)


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (3, 8), (2, 32), (8, 3), (1, 7)])
def test_a_uniform_pattern_fits_any_grid(rows, cols):
    for count in range(rows * cols + 1):
        assert pattern((rows, cols), count).sum() == count
