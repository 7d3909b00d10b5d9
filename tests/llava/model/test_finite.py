"""Numbers that are not finite are refused, with the place where they begin."""

import contextlib

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llava.inference.batch import generate_batch
from llava.inference.chat import ChatSession
from llava.inference.decoding import Decoding
from llava.inference.preprocess import Picture
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.finite import NotFinite, are_finite, require_finite_weights
from visionzip_patch import visionzip

PLACES = {
    "model.vision_tower.vision_tower.encoder.layers.0.mlp.fc1.bias": "the vision tower on .*layers.0.mlp.fc1",
    "model.mm_projector.2.weight": r"the projector on \(model\.mm_projector\.2\)",
    "model.layers.1.mlp.down_proj.weight": r"the language model on \(model\.layers\.1\.mlp\.down_proj\)",
    "lm_head.weight": r"the language model on \(lm_head\)",
}


@pytest.fixture
def loaded(checkpoint):
    folder, _ = checkpoint()
    return load_pretrained_model(str(folder), device="cpu")[:3]


@contextlib.contextmanager
def broken(model, name, value=float("nan")):
    weight = dict(model.named_parameters())[name].data.view(-1)
    before = weight[3].item()
    weight[3] = value
    try:
        yield
    finally:
        weight[3] = before


def ask(loaded, questions=1, **decoding):
    tokenizer, model, image_processor = loaded
    image = Image.new("RGB", (60, 40), "red")
    picture = Picture(process_images([image], image_processor, model.config)[0], image.size)
    decoding = Decoding(max_new_tokens=3, **decoding)
    return generate_batch(model, tokenizer, ["What?"] * questions, [[picture]] * questions, decoding)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("fast", ["off", "static"])
def test_an_answer_of_nan_is_refused_with_the_place(loaded, name, fast):
    loaded[1].fast = fast
    with broken(loaded[1], name):
        for questions in (1, 2):  # two share the image's part of the cache
            with pytest.raises(NotFinite, match=PLACES[name]):
                ask(loaded, questions)
        with pytest.raises(NotFinite, match=PLACES[name]):
            ask(loaded, temperature=1.0)  # torch's sampling would raise RuntimeError, or stop a GPU
    ask(loaded)


def test_beams_of_nan_are_refused(loaded):
    with broken(loaded[1], "lm_head.weight"), pytest.raises(NotFinite, match="lm_head"):
        ask(loaded, num_beams=2)


def test_infinity_is_not_finite_either(loaded):
    _, model, _ = loaded
    with broken(model, "lm_head.weight", 3e38), broken(model, "model.norm.weight", 3e38), pytest.raises(NotFinite):
        ask(loaded)


def test_zipped_features_are_looked_at_too(loaded):
    visionzip(loaded[1], 5, 2)
    name = next(iter(PLACES))
    with broken(loaded[1], name), pytest.raises(NotFinite, match=PLACES[name]):
        ask(loaded)


@pytest.mark.parametrize("fast", ["off", "static"])
def test_what_fails_after_the_first_token_is_refused_too(loaded, monkeypatch, fast):
    _, model, _ = loaded
    calls, head = [], model.lm_head.forward

    def failing(hidden):
        calls.append(None)
        return head(hidden) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(model.lm_head, "forward", failing)
    model.fast = fast
    with pytest.raises(NotFinite, match="from some token of its answer on"):
        ask(loaded)


def test_a_turn_that_fails_is_not_taken(loaded):
    tokenizer, model, image_processor = loaded
    image = Image.new("RGB", (60, 40), "red")
    decoding = Decoding(max_new_tokens=3)
    with ChatSession(model, tokenizer, image_processor, decoding) as session:
        first = "".join(session.ask("What?", [image]))
        before = list(session.messages), list(session.images)
        for name, place in PLACES.items():
            with broken(model, name), pytest.raises(NotFinite, match=place):
                list(session.ask("And?", [image]))
            assert (session.messages, session.images) == before
        with ChatSession(model, tokenizer, image_processor, decoding) as fresh:
            assert "".join(fresh.ask("What?", [image])) == first
            assert "".join(fresh.ask("Where?")) == "".join(session.ask("Where?"))


def test_fp16_is_told_to_be_too_small(loaded):
    loaded[1].half()
    with broken(loaded[1], "model.norm.weight", 6e4), broken(loaded[1], "lm_head.weight", 6e4):
        for row in loaded[1].lm_head.weight.data:
            row[3] = 6e4
        with pytest.raises(NotFinite, match="float16 holds nothing above 65504: load the model with dtype=bfloat16"):
            ask(loaded)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.mm_projector.0.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_are_looked_at_while_loading(checkpoint, name, value):
    folder, _ = checkpoint()
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[1:3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    count = weights[name].numel()
    with pytest.raises(NotFinite, match=rf"{name} of .*model\.safetensors: 2 of its {count:,} numbers are NaN or inf"):
        load_pretrained_model(str(folder), device="cpu")


def test_weights_that_fp16_cannot_hold(checkpoint):
    folder, _ = checkpoint()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match=r"lm_head\.weight of .* as float16\. float16 holds nothing above 65504"):
        load_pretrained_model(str(folder), device="cpu", dtype=torch.float16)
    load_pretrained_model(str(folder), device="cpu", dtype=torch.bfloat16)


def test_a_broken_tower_is_named_by_its_folder(tower_folder, checkpoint):
    tower = tower_folder("clip", num_hidden_layers=2)
    folder, _ = checkpoint(mm_vision_tower=tower)
    weights = load_file(f"{tower}/model.safetensors")
    name = next(key for key in weights if key.endswith("layers.0.mlp.fc1.bias"))
    weights[name][0] = float("nan")
    save_file(weights, f"{tower}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match=rf"layers\.0\.mlp\.fc1\.bias of {tower}: 1 of its"):
        load_pretrained_model(str(folder), device="cpu")


def test_what_cannot_be_looked_at_is_passed_over():
    model = torch.nn.Linear(2, 2, device="meta")
    model.empty = torch.nn.Parameter(torch.empty(0, 2))
    model.quantized = torch.nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    model.of_8_bits = torch.nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False)
    require_finite_weights(model.named_parameters(), str)


def test_which_rows_have_an_answer():
    logits = torch.tensor([[1.0, 2], [float("nan"), 0], [float("inf"), 0], [float("-inf"), 0], [float("-inf")] * 2])
    assert are_finite(logits).tolist() == [True, False, False, True, False]
