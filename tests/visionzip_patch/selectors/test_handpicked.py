"""Patches chosen by hand reach the language model, and nothing else changes."""

import pytest
import torch

from visionzip_patch import VisionZipConfig
from visionzip_patch.reducer import VisionZip
from visionzip_patch.selectors.handpicked import hand_picked


@pytest.fixture
def states(tiny_tower):
    """A tower with CLS and 16 patches, and what its selectors read of so many crops."""

    def make(crops=1):
        tower = tiny_tower()
        pixels = torch.randn(crops, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        return tower, tower.evidence(*tower.hidden_states(pixels))

    return make


def test_chosen_patches_stay_as_they_are_and_the_rest_is_merged(states):
    tower, evidence = states()
    reducer = hand_picked([[9, 2, 9, 15]], 2, tower)
    selection, after = reducer.select(evidence), evidence.features
    assert selection.kept.tolist() == [[0, 3, 10, 16]]  # CLS and, behind it, patches
    reduced = reducer.reduce(evidence, after)
    assert reduced.position.tolist() == [[-1, 2, 9, 15, -2, -2]]
    torch.testing.assert_close(reduced.tokens[0, :4], after[0, [0, 3, 10, 16]])
    assert len(selection.others[0]) == 17 - 6
    assert reducer.tokens() == 6


def test_visionzips_own_choice_by_hand_is_visionzips(states):
    tower, evidence = states()
    usual = VisionZip(VisionZipConfig(5, 3), tower)
    patches = (usual.select(evidence).kept[:, 1:] - 1).tolist()
    torch.testing.assert_close(
        hand_picked(patches, 3, tower).reduce(evidence, evidence.features), usual.reduce(evidence, evidence.features)
    )


def test_crops_with_fewer_patches_are_filled_up(states):
    tower, evidence = states(crops=3)
    selection = hand_picked([[1, 2, 3], [7], []], 0, tower).select(evidence, crops=3)
    assert selection.kept[0].tolist() == [0, 2, 3, 4]
    assert 8 in selection.kept[1]
    usual = VisionZip(VisionZipConfig(4, 0), tower).select(evidence)
    assert selection.kept[2].tolist() == usual.kept[2].tolist()


def test_patches_that_were_let_go_are_filled_in_last(states):
    tower, evidence = states(crops=2)
    usual = (hand_picked([[1, 2], []], 0, tower).select(evidence).kept[1, 1:] - 1).tolist()
    kept = hand_picked([[1, 2], []], 0, tower, released=[[], usual]).select(evidence).kept[1, 1:] - 1
    assert len({*kept.tolist(), *usual}) == 4
    full = hand_picked([[*range(15)], []], 0, tower, released=[[], usual]).select(evidence).kept[1, 1:] - 1
    assert len(set(full.tolist()) & set(usual)) == 1  # when there is no other


def test_nothing_chosen_leaves_cls_or_the_best_patch(tiny_tower):
    for tower, kept in ((tiny_tower("clip"), 0), (tiny_tower("siglip"), None)):
        evidence = tower.evidence(*tower.hidden_states(torch.randn(1, 3, 56, 56)))
        selection = hand_picked([[]], 1, tower).select(evidence)
        assert selection.kept.tolist() == [[int(evidence.saliency.argmax()) if kept is None else kept]]


def test_what_cannot_be(states):
    tower, evidence = states(crops=2)
    with pytest.raises(ValueError, match="no patch 16: a crop has patches 0 to 15"):
        hand_picked([[3, 16]], 1, tower)
    with pytest.raises(ValueError, match="asks for 18 tokens, but the vision tower gives 17"):
        hand_picked([range(15)], 2, tower)
    with pytest.raises(ValueError, match="no patch -1"):
        hand_picked([[3]], 1, tower, released=[[-1]])
    with pytest.raises(ValueError, match="chosen in 1 crops, but these are 2"):
        hand_picked([[3]], 1, tower).select(evidence, crops=2)


def test_settings_are_told_apart(tiny_tower):
    tower = tiny_tower()
    reducers = [hand_picked([[1]], 1, tower), hand_picked([[2]], 1, tower), hand_picked([[1]], 1, tower, "mean")]
    reducers += [hand_picked([[1]], 1, tower, released=[[2]])]
    reducers += [VisionZip(VisionZipConfig(2, 1, merge=merge), tower) for merge in ("sum", "mean")]
    assert len({repr(reducer) for reducer in reducers}) == 6  # what the engine keeps graphs by
    assert len(set(reducers)) == 6  # what a conversation encodes pictures anew by
    assert hand_picked([[1]], 1, tower) == reducers[0]
