import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.splice import splice

IMG = IMAGE_TOKEN_INDEX


def embed(ids):
    return torch.stack([ids.float(), -ids.float()], dim=-1)


def feature(first, count):
    return torch.arange(first, first + count).float()[:, None].expand(-1, 2)


def test_ragged_images_in_ragged_rows():
    ids = torch.tensor([[1, IMG, 5, IMG, 0], [2, 3, 4, 6, 7], [IMG, 8, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    labels = torch.where(ids > 2, ids, IGNORE_INDEX)
    features = [feature(100, 3), feature(200, 1), feature(300, 2)]
    expected = [[1, 100, 101, 102, 5, 200], [2, 3, 4, 6, 7], [300, 301, 8]]
    for side in ("right", "left"):
        out = splice(embed, ids, mask, features, labels, padding_side=side)
        for b, row in enumerate(expected):
            real = out.mask[b]
            assert out.embeds[b, real, 0].tolist() == row
            assert out.embeds[b, ~real].eq(0).all()
            assert out.positions[b, real].tolist() == list(range(len(row)))
            assert out.labels[b, real].tolist() == [x if 2 < x < 100 else IGNORE_INDEX for x in row]
            assert out.labels[b, ~real].eq(IGNORE_INDEX).all()
            assert real.tolist() == sorted(real.tolist(), reverse=side == "right")


def test_padding_on_either_side_of_the_input_is_dropped():
    left = splice(embed, torch.tensor([[0, 0, 7, IMG]]), torch.tensor([[0, 0, 1, 1]]), [feature(100, 2)])
    right = splice(embed, torch.tensor([[7, IMG, 0, 0]]), torch.tensor([[1, 1, 0, 0]]), [feature(100, 2)])
    assert torch.equal(left.embeds, right.embeds)
    assert left.labels is None


def test_an_image_token_under_padding_takes_no_image():
    out = splice(embed, torch.tensor([[7, IMG]]), torch.tensor([[1, 0]]), [])
    assert out.embeds[0, :, 0].tolist() == [7]


def test_an_image_of_no_tokens_leaves_no_slot():
    out = splice(embed, torch.tensor([[7, IMG, 8]]), torch.ones(1, 3), [feature(0, 0)])
    assert out.embeds[0, :, 0].tolist() == [7, 8]


def test_long_rows_are_cut_at_the_end():
    ids = torch.tensor([[1, IMG, 5], [2, 3, 4]])
    out = splice(embed, ids, torch.ones(2, 3), [feature(100, 4)], max_length=4)
    assert out.embeds[0, :, 0].tolist() == [1, 100, 101, 102]
    assert out.mask.sum(1).tolist() == [4, 3]


def test_a_count_mismatch_names_both_counts():
    for features in ([], [feature(0, 2)] * 3):
        with pytest.raises(ValueError, match=f"2 <image> tokens but {len(features)} images"):
            splice(embed, torch.tensor([[IMG, 1, IMG]]), torch.ones(1, 3), features)


def test_gradients_reach_text_and_features():
    table = torch.nn.Embedding(10, 2)
    visual = feature(100, 3).clone().requires_grad_(True)
    splice(table, torch.tensor([[4, IMG, 5]]), torch.ones(1, 3), [visual]).embeds.sum().backward()
    assert visual.grad.eq(1).all()
    assert table.weight.grad[[4, 5]].eq(1).all()
    assert table.weight.grad.sum() == 4
