import json

import pytest
import torch

from llava.model.anyres import (
    VisionFeatures,
    get_anyres_image_grid_shape,
    pack,
    parse_pinpoints,
    select_best_resolution,
    unpad_slices,
)
from visionzip_patch.token_order import CLS, MERGED


def table(golden, name):
    return json.loads((golden / "json" / f"{name}.json").read_text())


def grid_of(tiles, side):
    """Tokens whose channels are (tile, row, column), so that their order can be read off."""
    tile, row, col = torch.meshgrid(torch.arange(tiles), torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([tile, row, col], dim=-1).flatten(1, 2).float()


def test_a_whole_grid_is_in_raster_order_of_the_whole_image():
    features = VisionFeatures(grid_of(1 + 6, 2), None, side=2)
    out = pack(features, merge_type="spatial", grid=(3, 2), image_size=(30, 20))
    assert torch.equal(out[:4], features.tokens[0])
    expected = [[1 + 3 * (row // 2) + col // 2, row % 2, col % 2] for row in range(4) for col in range(6)]
    assert out[4:].tolist() == expected


def test_a_selection_follows_by_position_then_cls_then_merged():
    position = torch.tensor([[CLS, 0, 3, MERGED, MERGED], [CLS, 0, 3, MERGED, MERGED], [CLS, 1, 2, MERGED, MERGED]])
    tokens = torch.arange(15).view(3, 5, 1).float()
    out = pack(VisionFeatures(tokens, position, side=2), merge_type="spatial_unpad", grid=(2, 1), image_size=(20, 10))
    # The base crop as it is. Then by row: patch 0 of tile 1, 1 of tile 2 (columns 0 and 3), 3 of tile 1, 2 of tile 2
    # (columns 1 and 2). Then each tile's CLS. Then what tile 1 merged, and tile 2.
    assert out.flatten().tolist() == [0, 1, 2, 3, 4, 6, 11, 7, 12, 5, 10, 8, 9, 13, 14]


def test_flat_joins_crops_and_one_crop_may_get_a_newline():
    tokens = torch.rand(2, 3, 4)
    assert torch.equal(pack(VisionFeatures(tokens, None, 2), merge_type="flat"), tokens.flatten(0, 1))
    one = pack(VisionFeatures(tokens[:1], None, 2), merge_type="spatial_unpad", newline=torch.ones(4))
    assert torch.equal(one, torch.cat([tokens[0], torch.ones(1, 4)]))


def test_a_large_grid_is_scaled_down():
    features = VisionFeatures(torch.rand(1 + 9, 16, 4), None, side=4)
    call = {"merge_type": "spatial_unpad", "grid": (3, 3), "image_size": (90, 90), "newline": torch.ones(4)}
    assert len(pack(features, **call)) == 16 + 12 * 13
    assert len(pack(features, **call, max_tiles=9)) == 16 + 12 * 13
    assert len(pack(features, **call, max_tiles=4)) == 16 + 8 * 9


def test_errors():
    features = VisionFeatures(torch.rand(3, 4, 2), None, side=2)
    with pytest.raises(ValueError, match="choose one of flat, spatial, spatial_unpad"):
        pack(features, merge_type="snake")
    with pytest.raises(ValueError, match=r"3 crops.*pass image_sizes"):
        pack(features, merge_type="spatial")
    with pytest.raises(ValueError, match=r"2x2 grid = 4 tiles.*3 crops"):
        pack(features, merge_type="spatial", grid=(2, 2), image_size=(8, 8))


PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def test_unpadding_equals_the_goldens(golden):
    cases = table(golden, "unpad")["table"]
    assert len(cases) > 10
    for case in cases:
        rows, cols = case["feature_grid_hw"]
        by_row, by_col = unpad_slices(tuple(case["size"]), rows, cols)
        kept = torch.arange(rows * cols).view(rows, cols)[by_row, by_col]
        assert list(kept.shape) == case["kept_hw"]
        if kept.numel():
            assert (kept[0, 0], kept[-1, -1]) == (case["first"], case["last"])


def test_grids_and_token_counts_equal_the_goldens(golden):
    cases = table(golden, "anyres_visual_tokens")
    assert len(cases) > 10
    newline = torch.zeros(1)
    for case in cases:
        size = tuple(case["size"])
        grid = get_anyres_image_grid_shape(size, PINPOINTS, 336)
        assert list(grid) == case["grid"]
        assert grid == get_anyres_image_grid_shape(size, str(PINPOINTS), 336)
        features = VisionFeatures(torch.zeros(1 + grid[0] * grid[1], 576, 1), None, side=24)
        assert len(features.tokens) == case["tiles"]
        out = pack(features, merge_type="spatial_unpad", grid=grid, image_size=size, newline=newline)
        assert len(out) == case["visual_tokens"]


def test_ties_go_to_the_first_resolution():
    assert select_best_resolution((336, 336), PINPOINTS) == (336, 672)
    assert select_best_resolution((336, 336), PINPOINTS[1:]) == (672, 336)


def test_a_range_of_grids_is_every_number_of_columns_and_rows_between():
    assert parse_pinpoints("(1x1),...,(2x3)", 14) == [(14, 14), (14, 28), (14, 42), (28, 14), (28, 28), (28, 42)]
    assert len(parse_pinpoints(" (1x1) , ... , (6x6) ", 384)) == 36
    assert get_anyres_image_grid_shape((100, 200), "(1x1),...,(3x3)", 56) == (2, 3)
    assert parse_pinpoints("[(14, 28), [28, 14]]") == parse_pinpoints([[14, 28], (28, 14)]) == [(14, 28), (28, 14)]


@pytest.mark.parametrize(
    "pinpoints",
    ["(1x1),(2x2)", "(0x1),...,(2x2)", "(3x3),...,(2x2)", "(1x1),...,(9999x9999)", "grids", "", [], None, 5,
     [[1, 2, 3]], [["336", "672"]], [[336, 0]], [[336, -336]], [[1.5, 2]], "[" * 100_000, "__import__('os')"],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_what_is_no_list_of_resolutions_is_refused_by_name(pinpoints):
    with pytest.raises(ValueError, match="image_grid_pinpoints="):
        parse_pinpoints(pinpoints, 14)


@pytest.mark.parametrize("crops", [1, 3])
def test_rows_without_a_learned_end_are_refused(crops):
    features = VisionFeatures(torch.ones(crops, 4, 5), None, side=2)
    with pytest.raises(ValueError, match="image_newline, but this model has none"):
        pack(features, merge_type="spatial_unpad", grid=(2, 1), image_size=(20, 10))


def test_unpadding_needs_the_size_of_the_image():
    features = VisionFeatures(torch.ones(3, 4, 5), None, side=2)
    with pytest.raises(ValueError, match="pass image_sizes"):
        pack(features, merge_type="spatial_unpad", grid=(2, 1), newline=torch.ones(5))
