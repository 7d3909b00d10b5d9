"""The fast path gives the ids of transformers' own loop, whatever is asked; what it cannot do, that loop does."""

import copy
import gc
import logging
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, TextStreamer

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.engine import SPARE, Engine
from llava.model.graphs import MODES, Graphs
from llava.model.kv_cache import KVCache
from llava.model.runner import bucket
from llava.model.sampling import NEUTRAL, configure
from visionzip_patch import visionzip, zipped

IMG = IMAGE_TOKEN_INDEX
EAGER = ("static", "graphs")  # "graphs" pads batches and lengths, on a CPU too
FAMILIES = [("llama", "clip"), ("mistral", "clip"), ("qwen", "siglip")]
ANYRES = {
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}
LENGTHS = (9, 21, 4, 30, 13)  # of the prompts that `batch` makes
LONGEST = 19 + 2 * 16  # of them as the language model sees them: two images of 16 tokens


def pixels(*shape):
    return torch.randn(*shape, 3, 56, 56, generator=torch.Generator().manual_seed(len(shape)))


def prompt(length, seed, *image_at):
    ids = torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(seed))
    ids[list(image_at)] = IMG
    return ids


def pad(prompts, side):
    longest = max(map(len, prompts))
    rows = [torch.zeros(longest - len(p), dtype=torch.long) for p in prompts]
    rows = [torch.cat([r, p] if side == "left" else [p, r]) for p, r in zip(prompts, rows, strict=True)]
    return torch.stack(rows)


def batch(side="right"):
    """Five prompts: with one image, two, none, one near the end, one at the head."""
    places = ((2,), (5, 9), (), (28,), (0,))
    prompts = [prompt(n, seed, *at) for seed, (n, at) in enumerate(zip(LENGTHS, places, strict=True))]
    return {"inputs": pad(prompts, side), "images": pixels(5)}


def ends(model, call):
    """A token for `eos_token_id` at which some rows of an answer end early, and others never."""
    answer = model.generate(**call, max_new_tokens=12, min_new_tokens=12).tolist()
    early = [token for row in answer for token in row[1:6]]
    return next(token for token in early if 0 < sum(token in row for row in answer) < len(answer))


def same_as_plain(model, call, **options):
    """Checks that the engine, in all modes, answers as the plain loop does; returns the answer."""
    options = {"do_sample": False, **options}
    plain = model.generate(**call, **options)
    for mode in EAGER:
        with only_the_engine():
            fast = model.generate(**call, fast=mode, **options)
        assert (fast.dtype, fast.is_inference()) == (plain.dtype, False)
        assert fast.tolist() == plain.tolist(), mode
    return plain


@contextmanager
def only_the_engine():
    """Within, transformers' loop is a failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationMixin, "generate", lambda *args, **kwargs: pytest.fail("the plain loop ran"))
        yield


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [None, (5, 2)], ids=["full", "zipped"])
@pytest.mark.parametrize(("family", "tower"), FAMILIES)
def test_batches_of_unequal_prompts(tiny_llava, family, tower, budget, side):
    model, call = tiny_llava(family, tower), batch(side)
    if budget:
        visionzip(model, *budget)
    answer = same_as_plain(model, call, max_new_tokens=12, min_new_tokens=None)
    assert len({tuple(row) for row in answer.tolist()}) >= 4  # the model does listen to its prompts
    same_as_plain(model, {**call, "attention_mask": call["inputs"] != 0}, max_new_tokens=3)


@pytest.mark.parametrize("budget", [None, {"dominant": 5, "contextual": 2}, {"tokens_per_image": 12}], ids=str)
def test_anyres_images_of_different_grids(tiny_llava, budget):
    model = tiny_llava(**ANYRES)
    if budget:
        visionzip(model, **budget)
    call = {
        "inputs": pad([prompt(9, 1, 2), prompt(21, 2, 5), prompt(12, 3, 11)], "right"),
        "images": [pixels(3), pixels(5), pixels(3)],
        "image_sizes": [(50, 110), (100, 100), (120, 40)],
    }
    same_as_plain(model, call, max_new_tokens=8)


def test_the_golden_checkpoint(golden):
    from llava.model.builder import load_pretrained_model

    model = load_pretrained_model(golden / "models/llava-v1.5-tiny", device="cpu")[1]
    images = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    call = {"inputs": pad([prompt(9, 1, 2), prompt(14, 2, 1)], "left"), "images": images}
    same_as_plain(model, call, max_new_tokens=5)
    with zipped(model, dominant=20, contextual=3):
        same_as_plain(model, call, max_new_tokens=5)


@pytest.mark.parametrize("listed", [False, True])
def test_rows_that_end_early_are_padded(tiny_llava, listed):
    model, call = tiny_llava(), batch()
    stop = ends(model, call)
    for pad_token_id in (0, 7):
        options = {"eos_token_id": [stop, 199] if listed else stop, "pad_token_id": pad_token_id}
        answer = same_as_plain(model, call, max_new_tokens=12, **options)
        rows = [row[row.index(stop) + 1 :] for row in answer.tolist() if stop in row]
        assert 0 < len(rows) < len(answer)
        assert {token for row in rows for token in row} == {pad_token_id}


def test_it_stops_when_all_rows_have_ended(tiny_llava):
    model, call = tiny_llava(), batch()
    free = model.generate(**call, do_sample=False, max_new_tokens=12, eos_token_id=None).tolist()
    answer = same_as_plain(model, call, max_new_tokens=12, eos_token_id=[row[3] for row in free])
    assert 1 < answer.shape[1] <= 4


def test_answers_longer_than_the_room_they_start_with(tiny_llava):
    model, call = tiny_llava("qwen"), batch()
    answer = same_as_plain(model, call, max_new_tokens=2 * SPARE + 20, eos_token_id=None)
    assert answer.shape[1] == 2 * SPARE + 20


def test_one_token_and_text_alone(tiny_llava):
    model = tiny_llava("mistral")
    assert same_as_plain(model, batch(), max_new_tokens=1).shape == (5, 1)
    text = {"inputs": pad([prompt(9, 1), prompt(1, 2), prompt(6, 3)], "left")}
    assert same_as_plain(model, text, max_new_tokens=6).shape[0] == 3
    same_as_plain(model, {**text, "images": []}, max_new_tokens=6)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_length_limits_mean_the_same(tiny_llava):
    model, call = tiny_llava(), batch()
    assert same_as_plain(model, call, eos_token_id=None).shape == (5, 20)
    assert same_as_plain(model, call, eos_token_id=None, max_length=60).shape == (5, 60 - LONGEST)
    model.generation_config.max_length = 64
    assert same_as_plain(model, call, eos_token_id=None).shape == (5, 64 - LONGEST)
    assert same_as_plain(model, call, eos_token_id=None, max_new_tokens=3).shape == (5, 3)
    for fast in (None, *EAGER):
        with pytest.raises(ValueError, match="max_length"):
            model.generate(**call, fast=fast, max_length=LONGEST)


@pytest.mark.parametrize("window", [4, 25])
def test_a_sliding_window_shorter_than_the_prompt(tiny_llava, window):
    """Mistral's is that of all layers, Qwen's of the layers from `max_window_layers` on."""
    call = batch()
    mistral = tiny_llava("mistral", sliding_window=window)
    short = same_as_plain(mistral, call, max_new_tokens=12)
    whole = same_as_plain(tiny_llava("mistral", sliding_window=None), call, max_new_tokens=12)
    assert short.tolist() != whole.tolist()
    qwen = tiny_llava("qwen", sliding_window=window, use_sliding_window=True, max_window_layers=1)
    assert {layer.self_attn.sliding_window for layer in qwen.get_model().layers} == {None, window}
    same_as_plain(qwen, call, max_new_tokens=12)


SAMPLING = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 3.0, "top_k": None, "top_p": None},
    {"temperature": 3.0, "top_k": 0, "top_p": 0.95},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_one_seed_draws_the_same_samples(tiny_llava, options):
    model, call, answers = tiny_llava(), batch(), []
    for seed in range(3):
        drawn = []
        for fast, way in ((None, nullcontext), ("static", only_the_engine)):
            torch.manual_seed(seed)
            with way():
                answer = model.generate(**call, do_sample=True, max_new_tokens=8, fast=fast, **options)
            drawn.append(answer.tolist())
        assert drawn[0] == drawn[1]
        answers += drawn[:1]
    assert len({str(answer) for answer in answers}) == 3


def test_settings_of_the_checkpoint_count(tiny_llava):
    model, call = tiny_llava(), batch()
    stop = ends(model, call)
    model.generation_config.update(eos_token_id=[stop], pad_token_id=3, max_new_tokens=9)
    assert same_as_plain(model, call).shape[1] <= 9
    same_as_plain(model, call, generation_config=GenerationConfig(max_new_tokens=7))
    model.generation_config.update(do_sample=True, temperature=2.0, top_k=3)
    for options in ({}, {"do_sample": False, "temperature": None, "top_p": None}):
        drawn = []
        for fast in (None, "static"):
            torch.manual_seed(0)
            drawn.append(model.generate(**call, fast=fast, **options).tolist())
        assert drawn[0] == drawn[1]


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"stopping_criteria": [Never()]}, "stopping_criteria"),
        ({"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}, "no_repeat_ngram_size, repetition_penalty"),
        ({"min_new_tokens": 4}, "min_new_tokens"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores, return_dict_in_generate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_do_is_named_and_done_plainly(tiny_llava, monkeypatch, caplog, options, named):
    model, call = tiny_llava(), batch()
    options = {"do_sample": False, "max_new_tokens": 5, **options}
    plain = model.generate(**call, **options)
    monkeypatch.setattr(Engine, "generate", lambda *args: pytest.fail("the engine was asked"))
    with caplog.at_level(logging.WARNING):
        asked = model.generate(**call, fast="static", **options)
    assert f"fast='static' cannot do {named}: transformers' loop runs." in caplog.text
    if "return_dict_in_generate" in options:
        plain, asked = plain.sequences, asked.sequences
    assert asked.tolist() == plain.tolist()


def test_defaults_that_are_spelled_out_are_no_reason_to_go_the_plain_way(tiny_llava, caplog):
    options = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "stopping_criteria": None, "top_p": None}
    same_as_plain(tiny_llava(), batch(), max_new_tokens=3, temperature=None, **options)
    assert "transformers' loop" not in caplog.text


@pytest.mark.parametrize("mode", ["turbo", "Static"])
def test_an_unknown_mode_names_those_there_are(tiny_llava, checkpoint, mode):
    from llava.model.builder import load_pretrained_model

    message = rf"fast='{mode}' is unknown; choose one of {', '.join(MODES)}, or off"
    with pytest.raises(ValueError, match=message):
        tiny_llava().generate(**batch(), fast=mode, max_new_tokens=2)
    with pytest.raises(ValueError, match=message):  # before anything is read
        load_pretrained_model("/no/such/folder", fast=mode)


def test_other_attention_kernels_are_refused(tiny_llava, checkpoint):
    from llava.model.builder import load_pretrained_model

    message = r"fast='static' works with attention kernel 'sdpa', but this model runs 'eager'"
    folder = checkpoint()[0]
    with pytest.raises(ValueError, match=message):
        load_pretrained_model(folder, device="cpu", attn_implementation="eager", fast="static")
    model = load_pretrained_model(folder, device="cpu", attn_implementation="eager", fast="off")[1]
    assert model.generate(**batch(), max_new_tokens=2).shape == (5, 2)
    model = tiny_llava()
    model.generate(**batch(), fast="static", max_new_tokens=2)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=message):
        model.generate(**batch(), fast="static", max_new_tokens=2)


def test_off_is_transformers_loop(tiny_llava, monkeypatch):
    model = tiny_llava()
    model.fast = "static"
    expected = model.generate(**batch(), do_sample=False, max_new_tokens=5)
    monkeypatch.setattr(Engine, "generate", lambda *args: pytest.fail("the engine was asked"))
    assert model.generate(**batch(), do_sample=False, max_new_tokens=5, fast="off").tolist() == expected.tolist()


def test_the_loader_sets_what_generate_does_by_default(checkpoint, monkeypatch):
    from llava.model.builder import load_pretrained_model

    folder, model = checkpoint()
    expected = model.generate(**batch(), do_sample=False, max_new_tokens=5)
    asked, original = [], Engine.generate
    monkeypatch.setattr(Engine, "generate", lambda self, *args: asked.append(self.mode) or original(self, *args))
    for fast, override, used in ((None, None, []), ("static", None, ["static"]), ("static", "graphs", ["graphs"])):
        loaded = load_pretrained_model(folder, device="cpu", fast=fast)[1]
        assert loaded.fast == fast
        answer = loaded.generate(**batch(), do_sample=False, max_new_tokens=5, fast=override)
        assert answer.tolist() == expected.tolist()
        assert asked == used
        asked.clear()


class Collect(TextStreamer):
    """Keeps what it would print."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True)
        self.texts = []

    def on_finalized_text(self, text, stream_end=False):
        self.texts.append(text)


def test_a_streamer_is_used_as_transformers_does(tiny_llava):
    model, call = tiny_llava(), {"inputs": prompt(9, 1, 2)[None], "images": pixels(1)}

    def decode(ids: list[int] | int, **options) -> str:
        return "".join(f"{token}\n" for token in torch.tensor(ids).view(-1).tolist())

    tokenizer = SimpleNamespace(decode=decode)
    texts = []
    for fast in ("off", *EAGER):
        streamer = Collect(tokenizer)
        answer = model.generate(**call, do_sample=False, max_new_tokens=5, fast=fast, streamer=streamer)
        texts.append("".join(streamer.texts).split())
        assert texts[-1] == [str(token) for token in answer[0].tolist()]
    assert texts[0] == texts[1] == texts[2]


def test_it_leaves_no_trace_in_the_model(tiny_llava, tmp_path):
    model, call = tiny_llava(), batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    answer = same_as_plain(model, call, max_new_tokens=5)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    twin = copy.deepcopy(model)
    assert twin.engine().model is twin
    assert twin.engine() is not model.engine()
    assert twin.engine() is twin.engine()
    twin.lm_head.weight.data = twin.lm_head.weight.flip(0)  # another model from here on
    assert same_as_plain(twin, call, max_new_tokens=5).tolist() != answer.tolist()
    assert same_as_plain(model, call, max_new_tokens=5).tolist() == answer.tolist()


@pytest.mark.parametrize("mode", EAGER)
@pytest.mark.parametrize("budget", [None, {"dominant": 5, "contextual": 2}, {"tokens_per_image": 12}], ids=str)
@pytest.mark.parametrize("changes", [{}, ANYRES], ids=["flat", "spatial_unpad"])
def test_image_features_are_the_models_own(tiny_llava, mode, budget, changes):
    model = tiny_llava(**changes)
    if budget:
        visionzip(model, **budget)
    engine = model.engine(mode)
    forms = [(pixels(3), None), (list(pixels(2)), None), ([], None)]
    forms.append(([pixels(5), pixels(3), pixels(5)], [(100, 100), (50, 110), (100, 100)]))
    forms.append(([pixels(5), pixels(5), pixels(5)], [(100, 100)] * 3))  # more crops than a graph takes
    results = []
    for images, sizes in forms:
        with torch.no_grad():
            expected = model.image_features(images, sizes)
        found = engine.image_features(images, sizes)
        results.append((found, [tokens.clone() for tokens in found]))
        assert [tokens.shape for tokens in found] == [tokens.shape for tokens in expected]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for found, copies in results:  # later calls have written over none of them
        assert all(torch.equal(one, other) for one, other in zip(found, copies, strict=True))


def test_other_forms_of_images_go_to_the_model(tiny_llava):
    model = tiny_llava()
    with torch.no_grad():
        features = [model.get_vision_tower().features(pixels(2))]
        expected = model.image_features(features, None)
    assert torch.equal(model.engine("graphs").image_features(features, None)[0], expected[0])
    image = [Image.new("RGB", (20, 20))]
    for encoder in (model, model.engine("graphs")):
        with pytest.raises((TypeError, ValueError), match="process_images"):
            encoder.image_features(image, None)


@pytest.mark.parametrize(("length", "new", "mode"), [(600, 5, "graphs"), (200, 300, "graphs"), (200, 300, "static")])
def test_the_same_request_again_needs_nothing_new(tiny_llava, monkeypatch, length, new, mode):
    model, call = tiny_llava(), {"inputs": prompt(length, 1)[None]}
    made, prepared = [], []
    original = KVCache.__init__
    monkeypatch.setattr(KVCache, "__init__", lambda self, *args: made.append(args) or original(self, *args))
    prepare = Graphs.prepare
    monkeypatch.setattr(Graphs, "prepare", lambda self, *args: prepared.append(args) or prepare(self, *args))
    for expected in (1, 1, 1):
        model.generate(**call, do_sample=False, max_new_tokens=new, eos_token_id=None, fast=mode)
        assert len(made) == expected
    count = len(prepared)
    model.generate(**call, do_sample=False, max_new_tokens=new, eos_token_id=None, fast=mode)
    assert len(prepared) == count


def test_weights_of_another_type_are_noticed(tiny_llava):
    model, call = tiny_llava(), batch()
    same_as_plain(model, call, max_new_tokens=3)
    model.to(torch.bfloat16)
    call["images"] = call["images"].bfloat16()
    assert model.generate(**call, fast="static", do_sample=False, max_new_tokens=3).shape == (5, 3)
    model.float()
    call["images"] = call["images"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same_as_plain(model, call, max_new_tokens=1)


def test_a_model_can_be_freed(tiny_llava):
    model = tiny_llava()
    same_as_plain(model, batch(), max_new_tokens=2)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_what_comes_back_may_be_overwritten(tiny_llava, monkeypatch):
    """As by a CUDA graph: fixed inputs, and one output for all calls."""

    def prepare(self, function, inputs):
        kept = [tensor.clone() for tensor in inputs]
        output = function(*kept)

        def call(*inputs):
            for to, tensor in zip(kept, inputs, strict=True):
                to.copy_(tensor)
            for to, tensor in zip(tensors_of(output), tensors_of(function(*kept)), strict=True):
                to.copy_(tensor)
            return output

        return call

    monkeypatch.setattr(Graphs, "prepare", prepare)
    model = tiny_llava()
    for _ in range(2):
        same_as_plain(model, batch(), max_new_tokens=8)


def tensors_of(output):
    return [output] if isinstance(output, torch.Tensor) else [part for part in output if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize("limit_is_hit", [False, True])
def test_what_cannot_be_compiled_runs_as_it_is(tiny_llava, monkeypatch, caplog, limit_is_hit):
    def refuse(*args):
        raise torch._dynamo.exc.FailOnRecompileLimitHit("too many") if limit_is_hit else RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **options: refuse)
    model, call = tiny_llava(), batch()
    expected = model.generate(**call, do_sample=False, max_new_tokens=5)
    answer = model.generate(**call, do_sample=False, max_new_tokens=5, fast="compile")
    assert answer.tolist() == expected.tolist()
    assert "cannot be compiled" in caplog.text


@pytest.mark.slow
def test_compiled_by_inductor(tiny_llava):
    model, call = tiny_llava(), batch()
    expected = model.generate(**call, do_sample=False, max_new_tokens=5, eos_token_id=None)
    for _ in range(2):
        answer = model.generate(**call, do_sample=False, max_new_tokens=5, eos_token_id=None, fast="compile")
        assert answer.tolist() == expected.tolist()
    assert 2 <= len(model.engine("compile").times) <= 4  # tower, prompt, steps


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["graphs", "compile"])
def test_cuda_graphs(tiny_llava, mode):
    model, call = tiny_llava().cuda(), {name: value.cuda() for name, value in batch().items()}
    options = {"do_sample": False, "max_new_tokens": SPARE + 20, "eos_token_id": None}  # the cache grows on the way
    expected = model.generate(**call, **options)
    for _ in range(2):
        assert model.generate(**call, **options, fast=mode).tolist() == expected.tolist()
    engine = model.engine(mode)
    assert engine.tower_graphs.can_capture
    assert all(graphs.can_capture for _, graphs in engine.caches)
    prepared = len(engine.times)
    model.generate(**call, **options, fast=mode)
    assert len(engine.times) == prepared


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_as_it_is(caplog):
    def waits(numbers):
        return numbers * numbers.sum().item()

    numbers, graphs = torch.arange(4.0, device="cuda"), Graphs("graphs")
    stream = torch.cuda.current_stream()
    for _ in range(2):
        assert graphs.run("key", waits, numbers).tolist() == [0, 6, 12, 18]
    assert torch.cuda.current_stream() == stream
    assert "No CUDA graphs from here on" in caplog.text


def test_settings_are_read_without_changing_them(tiny_llava):
    model = tiny_llava()
    before, kwargs = model.generation_config.to_dict(), {"max_new_tokens": 5, "do_sample": True, "streamer": None}
    config, beyond = configure(model, kwargs)
    assert (config.max_new_tokens, config.do_sample, config.top_k, beyond) == (5, True, 50, set())
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("do_sample", [False, True])
def test_values_that_change_nothing_keep_the_fast_path(tiny_llava, do_sample):
    """Of each field of a GenerationConfig that has such a value."""
    model, plain = tiny_llava(), GenerationConfig()
    defaults = {name: value for name, value in plain._get_default_generation_params().items() if value is not None}
    neutral = {**NEUTRAL, **defaults, "suppress_tokens": [], "renormalize_logits": False, "max_time": None}
    for name, value in neutral.items():
        for options in ({name: value}, {"generation_config": GenerationConfig(**{name: value})}):
            assert configure(model, {"do_sample": do_sample, **options} if name != "do_sample" else options)[1] == set()
        setattr(model.generation_config, name, value)  # the model's own
    assert configure(model, {"max_new_tokens": 5})[1] == set()


def test_values_that_change_an_answer_leave_the_fast_path(tiny_llava):
    beams = {"num_beams": 2, "length_penalty": 0.5, "early_stopping": True}
    assert configure(tiny_llava(), beams)[1] == set(beams)
    samples = {"do_sample": True, "min_p": 0.1, "typical_p": 0.5}
    assert configure(tiny_llava(), samples)[1] == {"min_p", "typical_p"}
    others = {"repetition_penalty": 1.01, "no_repeat_ngram_size": 1, "max_time": 0.0, "forced_eos_token_id": 0}
    assert configure(tiny_llava(), others)[1] == set(others)
    idle = {"length_penalty": 0.5, "early_stopping": True, "min_p": 0.1}  # one beam, no samples
    assert configure(tiny_llava(), idle)[1] == set()


def test_few_lengths_serve_all():
    assert [bucket(n) for n in (1, 128, 129, 1024, 1025, 2049)] == [128, 128, 256, 1024, 2048, 3072]
    assert [bucket(n, 32) for n in (1, 33, 256, 257)] == [32, 64, 256, 512]
    assert len({bucket(n) for n in range(1, 16385)}) == 8 + 15
