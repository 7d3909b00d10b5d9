"""Dialogues with a zipped transformers model, from a kept cache: the same as from the start, or refused by name."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.visionzip_patch.test_adapters import ONE, OTHER, SQUARE, WIDE, inputs_for, make_model, pixels
from visionzip_patch import visionzip, zipped
from visionzip_patch.compat import CACHE

KINDS = ["llava", "llava_next"]
MORE = torch.tensor([[5, 6, 7]])


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return visionzip(make_model(kind), 5, 2)


def prompts(kind, batch=2):
    return dict(inputs_for(kind, (WIDE, SQUARE)[:batch], (ONE, OTHER)[:batch]))


def say(model, given, cache=None, **options):
    kept = {} if cache is None else {CACHE: cache}
    plain = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [model.config.image_token_id]}
    return model.generate(**given, **kept, **plain | options)


def ask(given, sequences, more=MORE):
    """The dialogue so far and what is said next: ids and mask alone."""
    more = more.expand(len(sequences), -1)
    ids = torch.cat([sequences, more], dim=1)
    mask = torch.cat([given["attention_mask"], torch.ones_like(ids[:, given["attention_mask"].shape[1] :])], dim=1)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kept", ["dynamic", "static", "the model's"])
def test_a_dialogue_goes_on_without_pixels(model, kind, batch, kept):
    given = prompts(kind, batch)
    makers = {
        "dynamic": DynamicCache,
        "static": lambda: StaticCache(model.config.get_text_config(), max_cache_len=150),
        "the model's": lambda: None,
    }
    cache = makers[kept]()
    first = say(model, given, cache, return_dict_in_generate=True)
    cache = first[CACHE]
    second = ask(given, first.sequences)
    third = ask(second, answer := say(model, second, cache))
    assert torch.equal(answer, say(model, {**pixels(given), **second}))
    assert torch.equal(say(model, third, cache), say(model, {**pixels(given), **third}))


def test_a_turn_brings_an_image(model, kind):
    given, cache = prompts(kind), DynamicCache()
    new = prompts(kind)["input_ids"].flip(0)  # images of other sizes: rows of other lengths
    second = ask(given, say(model, given, cache), new[:1])
    image = {name: value[1:].repeat_interleave(2, dim=0) for name, value in pixels(given).items()}
    both = {name: torch.stack([value, image[name]], dim=1).flatten(0, 1) for name, value in pixels(given).items()}
    answer = say(model, {**second, **image}, cache)
    assert torch.equal(answer, say(model, {**second, **both}))
    third = ask(second, answer)
    assert torch.equal(say(model, third, cache), say(model, {**third, **both}))


def test_new_ids_alone_under_a_mask_of_all(model, kind):
    given, cache = prompts(kind), DynamicCache()
    second = ask(given, say(model, given, cache))
    expected = say(model, {**second, **pixels(given)})
    second["input_ids"] = second["input_ids"][:, -1 - MORE.shape[1] :]  # the last word is not in the cache yet
    answer = say(model, second, cache)
    assert torch.equal(answer[:, MORE.shape[1] + 1 :], expected[:, second["attention_mask"].shape[1] :])


def test_many_questions_share_copies_of_one_cache(model, kind):
    given = prompts(kind)
    positions = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
    with torch.no_grad():
        shared = model(**given, position_ids=positions, use_cache=True)[CACHE]
    for words in (MORE, MORE + 3):
        question = ask(given, given["input_ids"], words)
        expected = say(model, {**question, **pixels(given)})
        assert torch.equal(say(model, question, copy.deepcopy(shared)), expected)


def test_dialogues_take_turns(model, kind):
    talks = [(prompts(kind, 1), DynamicCache()), (dict(inputs_for(kind, [SQUARE], [OTHER])), DynamicCache())]
    said = [say(model, given, cache) for given, cache in talks]
    for words in (MORE, MORE + 1):
        for i, (given, cache) in enumerate(talks):
            turn = ask(given, said[i], words)
            said[i] = say(model, turn, cache)
            assert torch.equal(said[i], say(model, {**turn, **pixels(given)}))


def test_words_first_then_an_image(model, kind):
    words, cache = {"input_ids": torch.tensor([[1, 8, 9]]), "attention_mask": torch.ones(1, 3).long()}, DynamicCache()
    image = prompts(kind, 1)
    second = ask(words, say(model, words, cache), image["input_ids"])
    answer = say(model, {**second, **pixels(image)}, cache)
    assert torch.equal(answer, say(model, {**second, **pixels(image)}))
    third = ask(second, answer)
    assert torch.equal(say(model, third, cache), say(model, {**third, **pixels(image)}))


@pytest.mark.parametrize("back", [2, 5])
def test_a_cache_that_is_cut_back_among_words(model, kind, back):
    given, cache = prompts(kind), DynamicCache(config=model.config.get_text_config())
    said = say(model, given, cache)
    cut(cache, back)  # the last word was never in it
    turn = ask(given, said[:, : said.shape[1] - 1 - back])
    assert torch.equal(say(model, turn, cache), say(model, {**turn, **pixels(given)}))


def cut(cache, count):
    try:
        cache.crop(-count)
    except ValueError:  # older versions take the length that stays
        cache.crop(cache.get_seq_length() - count)


def test_a_cache_that_is_cut_back_to_before_the_image(model, kind):
    given, cache = prompts(kind, 1), DynamicCache()
    say(model, given, cache)
    cut(cache, cache.get_seq_length() - 1)
    assert torch.equal(say(model, given, cache), say(model, given))
    cut(cache, cache.get_seq_length() - 1)
    with pytest.raises(ValueError, match="cut back to 1 tokens, before the end of its images, and pixel_values"):
        say(model, {"input_ids": given["input_ids"]}, cache)
    say(model, given, cache)
    cut(cache, cache.get_seq_length() - 4)
    with pytest.raises(ValueError, match=r"placeholders"):
        say(model, given, cache)


def test_what_does_not_go_on_is_refused(model, kind):
    given, cache = prompts(kind), DynamicCache()
    said = say(model, given, cache)
    second = ask(given, said)
    with pytest.raises(ValueError, match="new ids 0 placeholders, but 2 images are given"):
        say(model, {**second, **pixels(given)}, cache)
    with pytest.raises(ValueError, match=r"The cache holds \d+ ids of each row, input_ids only"):
        say(model, {"input_ids": said[:, :-2]}, cache)
    other = {"input_ids": second["input_ids"].clone()}
    other["input_ids"][0, -6] += 1
    with pytest.raises(
        ValueError, match=f"differ from what the cache holds, .* position {other['input_ids'].shape[1] - 6}"
    ):
        say(model, other, cache)
    with pytest.raises(ValueError, match="filled by 2 prompts, but 1 go on"):
        say(model, {"input_ids": second["input_ids"][:1]}, cache)
    assert torch.equal(say(model, second, cache), say(model, {**second, **pixels(given)})), "a refusal changed it"

    for way in ({"num_beams": 2}, "plain"):
        cache = DynamicCache()
        if way == "plain":
            said = say(make_model(kind), given, cache)
        else:
            said = say(model, given, cache, num_return_sequences=2, **way)
        second = {"input_ids": torch.cat([said, MORE.expand(len(said), -1)], dim=1)}
        with pytest.raises(ValueError, match="does not know which of them VisionZip has left out"):
            say(model, second, cache)


def test_the_cache_has_either_name(model, kind):
    given = prompts(kind)
    answers = []
    for name in ("cache", "past_key_values"):
        cache = DynamicCache()
        said = model.generate(**given, max_new_tokens=3, do_sample=False, **{name: cache})
        answers.append(model.generate(**ask(given, said), max_new_tokens=3, do_sample=False, **{name: cache}))
        with torch.no_grad():
            model(input_ids=MORE.expand(2, -1), **{name: cache})
        assert len(said) == 2
        assert cache.get_seq_length()
    assert torch.equal(*answers)


def test_another_budget_between_turns(model, kind):
    given, cache = prompts(kind), DynamicCache()
    second = ask(given, say(model, given, cache))
    expected = say(model, {**second, **pixels(given)})
    with zipped(model, 9, 3):
        assert torch.equal(say(model, second, cache), expected)
