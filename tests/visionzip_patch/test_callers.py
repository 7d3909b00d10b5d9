"""Programs that call transformers' LLaVA go on as they are when it is zipped.

Each caller runs twice: on a zipped model with what the processor returned, and on a plain model that is handed zipped
features and rows shortened by hand. It counts by its own rows, and both times the same must come of it.
"""

import functools

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer, MinLengthLogitsProcessor

from tests.visionzip_patch.test_adapters import ONE, OTHER, SQUARE, WIDE, inputs_for, make_model, pixels
from visionzip_patch import visionzip
from visionzip_patch.adapters.wrapping import named
from visionzip_patch.compat import CACHE

MODELS = ["llava", "llava_next"]


@functools.lru_cache
def pair(kind="llava", side="left", batch=2, **options):
    """(model, inputs) twice: zipped with the processor's, plain with those shortened by hand. No test changes them."""
    images, prompts = (WIDE, SQUARE)[:batch], (ONE, OTHER)[:batch]
    given = dict(inputs_for(kind, images, prompts, padding_side=side))
    model, plain = visionzip(make_model(kind, **options), 5, 2), make_model(kind, **options)
    with torch.no_grad():
        features = model.get_image_features(**pixels(given)).pooler_output
    plain.model.get_image_features = features_of(model, plain)
    return (model, given), (plain, shorten(plain, given, features, side))


def features_of(model, plain):
    """`get_image_features` of `model`, under the signature of that of `plain`: transformers looks."""
    original, features = plain.model.get_image_features, model.model.get_image_features
    return functools.wraps(original)(lambda *args, **kwargs: features(*args, **kwargs))


def shorten(model, given, features, side):
    """Each run of placeholders cut to the last ones, as many as its image has features."""
    token, features, rows = model.config.image_token_id, iter(features), []
    for ids, mask in zip(given["input_ids"].tolist(), given["attention_mask"].tolist(), strict=True):
        row = [i for i, shown in zip(ids, mask, strict=True) if shown]
        first, count = row.index(token), row.count(token)
        rows.append(row[:first] + [token] * len(next(features)) + row[first + count :])
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    left = side == "left"
    ids = [f + r if left else r + f for f, r in zip(fill, rows, strict=True)]
    mask = [f + [1] * len(r) if left else [1] * len(r) + f for f, r in zip(fill, rows, strict=True)]
    return {**given, "input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def answer(model, given, **options):
    """The ids that `generate` adds, behind a prompt that comes back as it was given."""
    torch.manual_seed(0)
    plain = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [model.config.image_token_id]}
    out = model.generate(**given, **plain | options)
    out = out if isinstance(out, torch.Tensor) else out.sequences
    length, copies = given["input_ids"].shape[1], len(out) // len(given["input_ids"])
    assert torch.equal(out[:, :length], given["input_ids"].repeat_interleave(copies, dim=0))
    return out[:, length:]


def behind(values):
    """Of the last three positions, which are words."""
    return values[:, -3:]


class StopAfter(StoppingCriteria):
    def __init__(self, given, count):
        self.given, self.count = given["input_ids"], count

    def __call__(self, ids, scores, **kwargs):
        length, copies = self.given.shape[1], len(ids) // len(self.given)
        assert torch.equal(ids[:, :length], self.given.repeat_interleave(copies, dim=0))
        return torch.full((len(ids),), ids.shape[1] - length >= self.count)


class Force(LogitsProcessor):
    """The n-th new token is token n + 20; in beams too, for rows are several to a prompt."""

    def __init__(self, given):
        self.given = given["input_ids"]

    def __call__(self, ids, scores):
        length, copies = self.given.shape[1], len(ids) // len(self.given)
        assert torch.equal(ids[:, :length], self.given.repeat_interleave(copies, dim=0))
        forced = torch.full_like(scores, -torch.inf)
        forced[:, ids.shape[1] - length + 20] = 0
        return forced


def allow(given):
    """What `prefix_allowed_tokens_fn` may be: odd tokens behind even ones, and the prompt is that of its row."""

    def allowed(row, ids):
        assert torch.equal(ids[: given["input_ids"].shape[1]], given["input_ids"][row])
        return [i for i in range(20, 60) if (i + len(ids) - given["input_ids"].shape[1]) % 2]

    return allowed


GENERATE = {
    "greedy": lambda given: {},
    "samples": lambda given: {"do_sample": True, "num_return_sequences": 2},
    "beams": lambda given: {"num_beams": 3},
    "several beams": lambda given: {"num_beams": 3, "num_return_sequences": 2},
    "a dictionary": lambda given: {"return_dict_in_generate": True, "output_scores": True},
    "without a cache": lambda given: {"use_cache": False},
    "a static cache": lambda given: {"cache_implementation": "static"},
    "a cache of one's own": lambda given: {CACHE: DynamicCache()},
    "the whole length": lambda given: {"max_new_tokens": None, "max_length": given["input_ids"].shape[1] + 4},
    "a configuration": lambda given: {
        "max_new_tokens": None,
        "generation_config": GenerationConfig(max_length=given["input_ids"].shape[1] + 4, pad_token_id=0),
    },
    "the least length": lambda given: {"min_length": given["input_ids"].shape[1] + 3, "eos_token_id": list(range(64))},
    "a penalty": lambda given: {"repetition_penalty": 1.7},
    "no repetition": lambda given: {"no_repeat_ngram_size": 2},
    "criteria": lambda given: {"stopping_criteria": StoppingCriteriaList([StopAfter(given, 2)])},
    "criteria and beams": lambda given: {"stopping_criteria": [StopAfter(given, 2)], "num_beams": 2},
    "transformers' criteria": lambda given: {
        "max_new_tokens": None,
        "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(given["input_ids"].shape[1] + 25)]),
    },
    "processors": lambda given: {"logits_processor": LogitsProcessorList([Force(given)])},
    "processors and beams": lambda given: {"logits_processor": [Force(given)], "num_beams": 2},
    "transformers' processors": lambda given: {
        "logits_processor": [MinLengthLogitsProcessor(given["input_ids"].shape[1] + 3, list(range(60)))],
        "eos_token_id": list(range(60)),
    },
    "allowed tokens": lambda given: {"prefix_allowed_tokens_fn": allow(given)},
    "allowed tokens and beams": lambda given: {"prefix_allowed_tokens_fn": allow(given), "num_beams": 3},
    "positions": lambda given: {"position_ids": (given["attention_mask"].cumsum(1) - 1).clamp(min=0)},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", GENERATE)
def test_a_way_to_generate(way, kind):
    found, expected = (answer(model, given, **GENERATE[way](given)) for model, given in pair(kind))
    assert found.tolist() == expected.tolist()


def words(given, model):
    """Labels of the words behind the image, (B, T)."""
    ids = given["input_ids"]
    last = (ids == model.config.image_token_id).cumsum(1)
    is_word = (last == last[:, -1:]) & (given["attention_mask"] == 1) & (ids != model.config.image_token_id)
    return ids.masked_fill(~is_word, -100)


def embedded(model, given):
    rest = {name: value for name, value in given.items() if name != "input_ids"}
    return {**rest, "inputs_embeds": model.get_input_embeddings()(given["input_ids"])}


def at_words(model, given, values):
    """(words, C) of (B, T, C)."""
    return values[words(given, model) != -100]


def accuracy(model, given, logits):
    """As a metric of tokens counts it, and the loss that a trainer smooths."""
    labels = words(given, model)[:, 1:]
    smooth = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    return torch.stack([(logits[:, :-1].argmax(-1) == labels).sum(), smooth])


def inner_loss(model, given):
    """As trainers compute it that keep the logits out of memory."""
    hidden = model.model(**given, use_cache=False).last_hidden_state[:, :-1]
    labels = words(given, model)[:, 1:]
    return nn.functional.cross_entropy(model.lm_head(hidden[labels != -100]), labels[labels != -100])


def own_loop(model, given, **options):
    """Six words, one call each, with a mask and positions that grow."""
    mask, found = given["attention_mask"], []
    out = model(**given, use_cache=True, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **options)
    last = mask.cumsum(1).argmax(1)
    for _ in range(6):
        found.append(out.logits[range(len(mask)), last].argmax(-1))
        last = -1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        cache = {CACHE: out[CACHE]}
        ids = found[-1][:, None]
        out = model(input_ids=ids, attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1, **cache)
    return torch.stack(found, dim=1)


def packed(model, given):
    """The two prompts in one row, with positions that begin anew."""
    mask = given["attention_mask"].bool()
    positions = (given["attention_mask"].cumsum(1) - 1)[mask]
    rest = {**pixels(given), "input_ids": given["input_ids"][mask][None], "position_ids": positions[None]}
    return model(**rest, use_cache=False).logits[0, -1]


FORWARD = {
    "logits": lambda model, given: at_words(model, given, model(**given).logits),
    "the last logits": lambda model, given: model(**given, logits_to_keep=1).logits[
        given["attention_mask"][:, -1] == 1
    ],
    "four logits": lambda model, given: model(**given, logits_to_keep=4).logits[given["attention_mask"][:, -4:] == 1],
    "chosen logits": lambda model, given: model(**given, logits_to_keep=torch.tensor([-1, -3])).logits[
        given["attention_mask"][:, -1] == 1
    ],
    "a tuple": lambda model, given: at_words(model, given, model(**given, return_dict=False)[0]),
    "embeddings": lambda model, given: at_words(model, given, model(**embedded(model, given)).logits),
    "the inner model": lambda model, given: at_words(model, given, model.model(**given).last_hidden_state),
    "embeddings, inner": lambda model, given: at_words(
        model, given, model.model(**embedded(model, given)).last_hidden_state
    ),
    "hidden states": lambda model, given: at_words(
        model, given, model(**given, output_hidden_states=True).hidden_states[1]
    ),
    "the loss": lambda model, given: model(**given, labels=words(given, model)).loss,
    "metrics": lambda model, given: accuracy(model, given, model(**given).logits),
    "metrics beside the loss": lambda model, given: accuracy(
        model, given, model(**given, labels=words(given, model)).logits
    ),
    "the loss of hidden states": inner_loss,
    "token types": lambda model, given: at_words(
        model, given, model(**given, mm_token_type_ids=torch.zeros_like(given["input_ids"])).logits
    ),
    "a loop of one's own": own_loop,
    "packed prompts": packed,
    "forward by itself": lambda model, given: at_words(model, given, model.forward(**given).logits),
}


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", FORWARD)
def test_a_way_to_call(way, kind, side):
    found, expected = (FORWARD[way](*caller) for caller in pair(kind, side))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class Keep(BaseStreamer):
    def __init__(self):
        self.got = []

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.got.append("end")


def test_a_streamer_gets_the_prompt_as_it_was_given():
    for model, given in pair(batch=1):
        streamer = Keep()
        found = answer(model, given, streamer=streamer)
        assert streamer.got == [given["input_ids"].tolist(), *found.T.tolist(), "end"]


@pytest.mark.parametrize(
    "options", [{"prompt_lookup_num_tokens": 2}, {"guidance_scale": 1.5}, {"assistant_model": "a text model"}], ids=str
)
def test_a_way_to_generate_for_one_prompt(options):
    if "assistant_model" in options:
        torch.manual_seed(1)
        text = make_model().config.text_config.to_dict()
        options = {"assistant_model": LlamaForCausalLM(LlamaConfig(**text)).eval()}
    (model, given), (plain, short) = pair(batch=1)
    try:
        expected = answer(plain, short, **options)
    except ValueError as error:
        pytest.skip(f"this version of transformers cannot: {error}")
    assert answer(model, given, **options).tolist() == expected.tolist()


@torch.no_grad()
def test_hidden_states_and_attention_are_at_the_positions_given():
    model, given = visionzip(make_model(), 5, 2), dict(inputs_for("llava", (WIDE, SQUARE), (ONE, OTHER)))
    model.set_attn_implementation("eager")
    wanted = {"output_attentions": True, "output_hidden_states": True}
    positions = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    seen = model(**given, **wanted, position_ids=positions)
    length = given["input_ids"].shape[1]
    stays = seen.hidden_states[0].any(-1)
    assert stays.sum(1).tolist() == [length - 9, length - 10]  # a row is padded by one
    for attention, hidden in zip(seen.attentions, seen.hidden_states[1:], strict=True):
        assert torch.equal(hidden.any(-1), stays)
        torch.testing.assert_close(attention.sum(-1), stays[:, None].float().expand(-1, 4, -1))
        assert not attention.transpose(1, 3)[~stays].any()

    steps = model.generate(**given, **wanted, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    assert [layers[0].shape[-1] for layers in steps.attentions] == [length, length + 1, length + 2]
    for first, whole in ((steps.attentions[0], seen.attentions), (steps.hidden_states[0], seen.hidden_states)):
        torch.testing.assert_close(first, whole)
    beams = model.generate(**given, **wanted, max_new_tokens=2, num_beams=3, return_dict_in_generate=True)
    assert [layers[0].shape[-1] for layers in beams.attentions] == [length, length + 1]
    assert beams.hidden_states[0][0].shape[1] == length


def test_what_counts_the_tokens_of_packs_is_refused():
    (model, given), _ = pair()
    ends = torch.tensor([0, given["input_ids"].numel()])
    with pytest.raises(ValueError, match="cu_seq_lens_q, cu_seq_lens_k count the tokens of whole images"):
        model(**given, cu_seq_lens_q=ends, cu_seq_lens_k=ends)

    (model, given), _ = pair("llava_next")
    few, many = (row[mask.bool()] for row, mask in zip(given["input_ids"], given["attention_mask"], strict=True))
    few = torch.cat([few, few.new_full((len(many) - len(few),), 5)])  # as long as the other, till images are shortened
    positions = torch.arange(len(many)) % (len(many) - 2)
    with pytest.raises(ValueError, match="position_ids begin anew inside of rows"):
        model(input_ids=torch.stack([few, many]), position_ids=positions.expand(2, -1), **pixels(given))


@torch.no_grad()
def test_labels_given_by_another_name_are_shortened_too():
    """`shift_labels`, which sequence parallelism passes: each position has the label of the next."""
    (model, given), _ = pair(side="right")
    labels = words(given, model)
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    loss = model(**given, labels=labels, shift_labels=shifted).loss
    torch.testing.assert_close(loss, model(**given, labels=labels).loss)


REFUSED = {
    "ids twice": lambda model, given: model(given["input_ids"], **given),
    "more than there is a name for": lambda model, given: model(*[None] * 99),
    "ids twice, in generate": lambda model, given: model.generate(given["input_ids"], inputs=given["input_ids"]),
    "pixels twice": lambda model, given: model.get_image_features(given["pixel_values"], **pixels(given)),
    "no pixels": lambda model, given: model.model.get_image_features(),
}


@pytest.mark.parametrize("call", REFUSED)
def test_a_call_that_the_plain_model_refuses_is_refused(call):
    (model, given), _ = pair("llava_next")
    for either in (make_model("llava_next"), model):
        with pytest.raises(TypeError):
            REFUSED[call](either, given)


@torch.no_grad()
def test_arguments_by_position_are_those_of_the_plain_model():
    (model, given), _ = pair()
    rest = {name: value for name, value in given.items() if name not in ("input_ids", "pixel_values")}
    positional = model(given["input_ids"], given["pixel_values"], **rest)
    assert torch.equal(positional.logits, model(**given).logits)


def test_arguments_without_a_name_cannot_be_told_apart():
    def method(first, *args, second=None, **kwargs):
        raise AssertionError

    assert named(method, (1,), {"second": 2, "third": 3}) == {"first": 1, "second": 2, "third": 3}
    with pytest.raises(TypeError, match="pass them by name"):
        named(method, (1, 2), {})
