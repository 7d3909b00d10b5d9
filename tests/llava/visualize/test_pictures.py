"""Pictures against the selection they show: each outline, colour and number where it belongs."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from llava.visualize import (
    DROPPED,
    KEPT,
    Patch,
    average_figure,
    colours,
    figure,
    look,
    make_view,
    map_view,
    on_one_scale,
    overlay,
    page,
    patch_at,
)
from visionzip_patch import select, unzip, visionzip

GRID, CELL = 4, 15
SIDE = GRID * CELL
GREY = (120, 130, 140)


def selection_of(crops=1, dominant=5, contextual=3, cls=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(crops, GRID**2 + cls, 6, generator=generator)
    scores = torch.rand(crops, GRID**2, generator=generator)
    return scores, select(keys, scores, dominant=dominant, contextual=contextual)


def view_of(crops=1, cols=1, title="a picture", cls=True, **options):
    squares = [Image.new("RGB", (SIDE, SIDE), GREY)] * crops
    scores, selection = selection_of(crops, cls=cls, **options)
    return make_view(squares, scores, selection, has_cls=cls, meaning="of something", title=title, cols=cols)


def middle(image, view, crop, patch):
    """A pixel of the patch that no outline and no disc reaches."""
    x, y = view.crops[crop].corner(patch)
    return image.convert("RGB").getpixel((x + CELL // 2, y + CELL // 2))


def on_edge(image, view, crop, patch):
    """Whether each of the four sides of a patch, just inside, is white."""
    x, y = view.crops[crop].corner(patch)
    points = ((x + 7, y), (x + 7, y + CELL - 1), (x, y + 7), (x + CELL - 1, y + 7))
    return [image.convert("RGB").getpixel(point) == (255, 255, 255) for point in points]


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("contextual", [3, 1, 0])
def test_a_view_says_what_the_selection_says(cls, contextual):
    scores, selection = selection_of(2, contextual=contextual, cls=cls)
    view = view_of(2, contextual=contextual, cls=cls)
    for i, crop in enumerate(view.crops):
        kept = {int(p) - cls for p in selection.kept[i]} - {-1}
        assert set(np.flatnonzero(crop.token == KEPT)) == kept
        assert crop.targets.tolist() == [int(p) - cls for p in selection.targets[i]]
        for k in range(contextual):
            joined = {int(p) - cls for p in selection.others[i][selection.nearest[i] == k]}
            assert set(np.flatnonzero(crop.token == i * contextual + k)) == joined | {crop.targets[k]}
        assert (crop.token == DROPPED).any() == (contextual == 0)
        assert crop.score == pytest.approx((100 * scores[i] / scores[i].sum()).numpy())
    assert view.tokens == 2 * (5 + contextual)
    assert view.patches == 32


def test_kept_patches_are_outlined_and_others_are_not():
    view = view_of()
    image, token = overlay(view, heat=False, clusters=False), view.crops[0].token
    for patch in range(GRID**2):
        white = on_edge(image, view, 0, patch)
        if token[patch] != KEPT:
            assert not any(white)
            continue
        neighbours = [(-1, 0), (1, 0), (0, -1), (0, 1)]  # above, below, left, right
        for (down, right), is_white in zip(neighbours, white, strict=True):
            row, col = patch // GRID + down, patch % GRID + right
            inside = 0 <= row < GRID and 0 <= col < GRID
            assert is_white != (inside and token[row * GRID + col] == KEPT)  # one line around patches that touch
        assert middle(image, view, 0, patch) == GREY


def test_patches_have_the_colour_of_their_cluster():
    view = view_of()
    crop = view.crops[0]
    image = overlay(view, heat=False, kept=False)
    shown = {}
    for patch in set(range(GRID**2)) - set(crop.targets.tolist()):
        shown.setdefault(crop.token[patch], set()).add(middle(image, view, 0, patch))
    assert all(len(found) == 1 for found in shown.values())
    assert len(set.union(*shown.values())) == len(shown) > 2
    plain = overlay(view, heat=False, kept=False, clusters=False)
    assert plain.tobytes() == view.picture.tobytes()


def test_heat_grows_with_the_score():
    view = view_of()
    image = overlay(view, kept=False, clusters=False)
    order = view.crops[0].score.argsort()
    luma = [np.dot(middle(image, view, 0, int(patch)), (0.299, 0.587, 0.114)) for patch in order]
    assert luma == sorted(luma)
    assert luma[-1] > 2 * luma[0]


def test_every_target_is_marked():
    view = view_of(5, cols=2)
    marks = np.asarray(overlay(view, heat=False)) != np.asarray(overlay(view, heat=False, clusters=False))
    for crop in view.crops:
        assert len(crop.targets) == 3
        for target in crop.targets:
            x, y = crop.corner(int(target))
            assert marks[y : y + CELL, x : x + CELL].any()
    numbers = [crop.token[target] for crop in view.crops for target in crop.targets]
    assert numbers == list(range(15))


def test_tiles_are_in_their_place():
    squares = [Image.new("RGB", (SIDE, SIDE), (40 * i, 0, 0)) for i in range(7)]
    scores, selection = selection_of(7)
    view = make_view(squares, scores, selection, has_cls=True, meaning="", cols=3)
    base, *tiles = view.crops
    assert [(tile.left - tiles[0].left) // SIDE for tile in tiles] == [0, 1, 2, 0, 1, 2]
    assert [(tile.top - tiles[0].top) // SIDE for tile in tiles] == [0, 0, 0, 1, 1, 1]
    assert base.left + SIDE < tiles[0].left
    for i, crop in enumerate(view.crops):
        assert view.picture.getpixel((crop.left + 1, crop.top + 1)) == (40 * i, 0, 0, 255)
        for patch in (0, 3, 12, 15):
            x, y = crop.corner(patch)
            assert patch_at(view, x, y) == patch_at(view, x + CELL - 1, y + CELL - 1) == Patch(i, patch)
    gap = tiles[0].left + SIDE
    assert view.picture.getpixel((gap, tiles[0].top))[3] == 0
    for x, y in ((gap, tiles[0].top), (-1, tiles[0].top), (view.picture.width, tiles[0].top), (5, -1)):
        assert patch_at(view, x, y) is None


def test_frames_share_their_scale():
    views = on_one_scale([view_of(seed=1), view_of(seed=2)])
    assert views[0].scale == views[1].scale
    scores = np.concatenate([view.crops[0].score for view in views])
    assert views[0].scale == (scores.min(), scores.max())


def test_figures_hold_all_their_panels():
    one, wide = figure([view_of()], "title", "more"), figure([view_of(5, cols=4)], "title", "more")
    frames = figure([view_of(seed=i, title="a long title of a frame") for i in range(4)], "title", "more")
    assert one.mode == "RGB"
    assert one.width > 3 * SIDE
    assert wide.height > 3 * SIDE
    assert frames.width > 4 * SIDE
    assert frames.height > 3 * SIDE
    maps = [map_view(np.arange(16.0), title="mean", meaning="of it", side=100) for _ in range(2)]
    assert maps[0].picture.size == (100, 100)
    assert average_figure(maps, "title", "more").width > 200


def test_equal_scores_can_be_drawn():
    view = map_view(np.ones(16), title="", meaning="", side=64)
    assert overlay(view).size == (64, 64)
    assert "NaN" not in page([view], "", "")


class Tags(HTMLParser):
    """Open tags, ids and links of a page."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "input"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody():
    views = [view_of(5, cols=2, title="</script><b>", seed=i) for i in range(2)]
    text = page(views, "title <&> %DATA%", "more %TITLE%")
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    assert tags.links == []
    assert not re.search(r"https?:|//\w+\.|@import|url\((?!#)", text)
    assert "<title>title &lt;&amp;&gt; %DATA%</title>" in text
    assert re.findall(r"%[A-Z]+%", text) == ["%DATA%", "%DATA%", "%TITLE%"]  # those of the title, twice, and no other
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    for view, described in zip(views, data["views"], strict=True):
        assert described["title"] == "</script><b>"
        for crop, told in zip(view.crops, described["crops"], strict=True):
            assert told["token"] == crop.token.tolist()
            assert told["targets"] == crop.targets.tolist()
            assert told["score"] == pytest.approx(crop.score, rel=0.01)
            assert told["image"].startswith("data:image/jpeg;base64,")
    assert len(data["colours"]) == 15


def test_colours_can_be_told_apart():
    ramp = colours.heat(np.linspace(0, 1, 50))
    assert (np.diff(ramp @ (0.2126, 0.7152, 0.0722)) > 0).all()  # also without hues
    clusters = colours.cluster(np.arange(10))
    distance = np.linalg.norm(clusters[:, None] - clusters, axis=-1) + np.eye(10)
    assert distance.min() > 0.08
    assert colours.to_hex(np.array([[0, 0.5, 1]])) == ["#0080ff"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_look_is_what_the_tower_does(tiny_llava, kind):
    model = visionzip(tiny_llava(tower=kind), 5, 2)
    tower, pixels = model.get_vision_tower(), torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    scores, selection = look(tower, pixels)
    assert scores.shape == (3, 16)
    for found, expected in zip(selection, tower.select(pixels), strict=True):
        assert torch.equal(found, expected)
    squares = [Image.new("RGB", (SIDE, SIDE), GREY)] * 3
    view = make_view(squares, scores, selection, has_cls=tower.has_cls, meaning="")
    assert view.tokens == 21
    assert view.dominant == 15 - 3 * (kind == "clip")
    for crop in view.crops:
        kept = crop.token == KEPT
        assert crop.score[kept].min() >= crop.score[~kept].max()
    with pytest.raises(ValueError, match=r"call visionzip"):
        look(unzip(model).get_vision_tower(), pixels)
