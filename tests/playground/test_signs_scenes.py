"""Scenes are functions of their seed, patches know what covers them, and every answer can be read off the signs."""

import numpy as np
import pytest

from playground.signs.scenes import (
    COLOURS,
    GRID,
    KINDS,
    PATCH,
    SIZE,
    WORDS,
    Box,
    Sign,
    coverage,
    make_scene,
    overlap,
    questions,
)

SEEDS = range(40)


@pytest.mark.parametrize("dense", [False, True])
def test_a_seed_is_a_scene(dense):
    one, two, other = (make_scene(seed, dense=dense) for seed in (7, 7, 8))
    assert one.signs == two.signs
    np.testing.assert_array_equal(one.image, two.image)
    assert (one.image != other.image).any()
    assert one.image.shape == (SIZE, SIZE, 3)
    assert one.image.dtype == np.uint8


def test_scenes_show_one_or_two_distinct_signs_inside_the_picture():
    scenes = [make_scene(seed) for seed in SEEDS]
    assert {len(scene.signs) for scene in scenes} == {1, 2}
    for scene in scenes:
        assert (
            len({sign.colour for sign in scene.signs}) == len({sign.text for sign in scene.signs}) == len(scene.signs)
        )
        for sign in scene.signs:
            assert sign.colour in COLOURS
            assert sign.text in WORDS or 10 <= int(sign.text) <= 99
            assert len(sign.characters) == len(sign.text)
            assert 0 <= sign.box.left < sign.box.right <= SIZE
            assert 0 <= sign.box.top < sign.box.bottom <= SIZE


def test_signs_have_their_colour_where_their_box_is():
    """At the middle of the box's left edge there is no text, no rounded corner, and at most an outline a pixel wide."""
    for seed in SEEDS:
        scene = make_scene(seed)
        for sign in scene.signs:
            row, column = int(sign.box.top + sign.box.bottom) // 2, int(sign.box.left) + 2
            difference = scene.image[row, column].astype(int) - COLOURS[sign.colour]
            assert np.abs(difference).max() <= 15 + 8, (seed, sign)  # fill varies by 15, grain by 8


def test_coverage_counts_pixels():
    for seed in SEEDS:
        signs = make_scene(seed).signs
        painted = np.zeros((SIZE, SIZE))
        for sign in signs:
            left, top, right, bottom = map(int, sign.box)
            painted[top:bottom, left:right] = 1
        shares = painted.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
        np.testing.assert_allclose(coverage(signs), shares, atol=1e-6)


def test_overlap_of_a_known_box():
    shares = overlap(Box(7, 14, 21, 35))  # half of columns 0 and 1; all of row 1, half of row 2
    expected = np.zeros((GRID, GRID))
    expected[1, :2], expected[2, :2] = 0.5, 0.25
    np.testing.assert_array_equal(shares, expected)


def test_answers_follow_from_the_signs():
    signs = (Sign("red", "stop", Box(0, 0, 40, 20)), Sign("orange", "42", Box(50, 50, 90, 80)))
    asked = {question.text: question for question in questions(signs, seed=0)}
    assert asked["what word is on the red sign?"].answer == "stop"
    assert asked["what number is on the orange sign?"].answer == "42"
    assert asked["what color is the sign that says stop?"].answer == "red"
    assert asked["what color is the sign that says 42?"].answer == "orange"
    assert asked["how many signs are there?"].answer == "2"
    exists = [question for question in asked.values() if question.kind == "exists"]
    assert [question.answer for question in exists] == ["yes", "no"]
    assert "red" in exists[0].text or "an orange" in exists[0].text
    assert "red" not in exists[1].text
    assert "orange" not in exists[1].text
    assert len(asked) == 7
    assert {question.kind for question in asked.values()} == set(KINDS)
