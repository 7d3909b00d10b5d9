"""transformers' own LLaVA classes, zipped: what their processors return goes on working, with fewer tokens.

What is right comes from another route: an eager encoder's attention maps, `compress`, an order written out with loops,
and embeddings spliced by hand.
"""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import visionzip_patch
from visionzip_patch import compress, unzip, visionzip, zipped
from visionzip_patch.adapters import ADAPTERS

SIDE, SIZE = 4, 56  # patches, pixels
PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]  # (height, width)
ONE, OTHER = "USER: <image> what is in the picture ? ASSISTANT:", "USER: a b c d <image> ? ASSISTANT:"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(f"{ONE} {OTHER}".replace("<image>", "").split())]
KINDS = ["llava", "llava_next", "siglip"]


def make_model(kind="llava", **changes):
    """A small random model. A freshly drawn one answers every prompt alike, so the weights are spread out."""
    vision = {
        "model_type": "siglip_vision_model" if kind == "siglip" else "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 14,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,  # answers of one length
    }
    options = {"vision_config": vision, "text_config": text, "image_token_id": len(WORDS)}
    options["vision_feature_select_strategy"] = "full" if kind == "siglip" else "default"
    options |= changes
    torch.manual_seed(0)
    if kind == "llava_next":
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(image_grid_pinpoints=PINPOINTS, **options))
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**options))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def make_processor(kind="llava"):
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    has_cls = kind != "siglip"
    options = {"tokenizer": tokenizer, "patch_size": 14, "num_additional_image_tokens": int(has_cls)}
    options["vision_feature_select_strategy"] = "default" if has_cls else "full"
    crop = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    if kind == "llava_next":
        images = LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **crop)
        return LlavaNextProcessor(image_processor=images, **options)
    return LlavaProcessor(image_processor=CLIPImageProcessorPil(**crop), **options)


def picture(width, height, seed):
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


TALL, WIDE, SQUARE = picture(40, 130, 1), picture(190, 50, 2), picture(100, 100, 3)


def inputs_for(kind, images=(SQUARE,), prompts=(ONE,), **kwargs):
    return make_processor(kind)(images=list(images), text=list(prompts), padding=True, return_tensors="pt", **kwargs)


@torch.no_grad()
def expected_features(model, inputs, budgets, merge="sum"):
    """Tokens of each image by the other route; `budgets` has (dominant, contextual) per image."""
    twin = copy.deepcopy(model).model
    tower, has_cls = twin.vision_tower, twin.config.vision_config.model_type == "clip_vision_model"
    tower.set_attn_implementation("eager")
    layer, images = tower.encoder.layers[-2], []
    for i, (dominant, contextual) in enumerate(budgets):
        pixels, rows, cols = inputs["pixel_values"][i], 0, 0
        if pixels.ndim == 4:
            rows, cols = best_grid(inputs["image_sizes"][i].tolist())
            pixels = pixels[: 1 + rows * cols]
        seen = tower(pixels.reshape(-1, 3, SIZE, SIZE), output_attentions=True, output_hidden_states=True)
        attention, features, before = seen.attentions[-2], seen.hidden_states[-2], seen.hidden_states[-3]
        saliency = attention[:, :, 0, 1:].sum(1) if has_cls else attention.mean((1, 2))
        keys = layer.self_attn.k_proj(layer.layer_norm1(before)).unflatten(-1, (4, 8)).mean(2)
        reduced = compress(features, keys, saliency, dominant=dominant, contextual=contextual, merge=merge)
        tokens = list(reduced[0])
        tiles = [(t // cols, t % cols, t + 1) for t in range(rows * cols)]
        kept = [[-1, *sorted((saliency[c].topk(dominant - 1).indices).tolist())] for *_, c in tiles]
        patches = [
            (r * SIDE + p // SIDE, c * SIDE + p % SIDE, reduced[crop, slot])
            for (r, c, crop), positions in zip(tiles, kept, strict=True)
            for slot, p in enumerate(positions)
            if p >= 0
        ]
        tokens += [token for _, _, token in sorted(patches, key=lambda patch: patch[:2])]
        tokens += [reduced[crop, 0] for *_, crop in tiles]
        tokens += [token for *_, crop in tiles for token in reduced[crop, dominant:]]
        images.append(twin.multi_modal_projector(torch.stack(tokens)))
    return images


def best_grid(size):
    """(rows, cols) of tiles for an image of (height, width): most pixels kept, then least waste."""

    def quality(point):
        scale = min(point[0] / size[0], point[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - point[0] * point[1]

    height, width = max(PINPOINTS, key=quality)
    return height // SIZE, width // SIZE


@torch.no_grad()
def spliced(model, inputs, images):
    """One prompt as embeddings, (1, S, C): the runs of placeholders replaced by hand."""
    pieces, run, images = [], False, iter(images)
    for token, seen in zip(inputs["input_ids"][0], inputs["attention_mask"][0], strict=True):
        is_image = token == model.config.image_token_id
        if seen and is_image and not run:
            pieces.append(next(images))
        elif seen and not is_image:
            pieces.append(model.get_input_embeddings()(token[None]))
        run = is_image
    assert next(images, None) is None
    return torch.cat(pieces)[None]


def new_ids(model, inputs, **kwargs):
    """Ids that `generate` adds to what the processor returned."""
    out = model.generate(**inputs, **{"max_new_tokens": 8, "do_sample": False, **kwargs})
    length = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :length], inputs["input_ids"])
    return out[:, length:].tolist()


def left(logits):
    """Those of one prompt at the positions that are left, (1, S, V): 0 stands at the others."""
    return logits[logits.any(-1)][None]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "image"), [("llava", SQUARE), ("siglip", SQUARE), ("llava_next", TALL), ("llava_next", WIDE)]
)
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_logits_and_answers_are_those_of_the_other_route(kind, image, merge):
    model, inputs = make_model(kind), inputs_for(kind, [image])
    embeds = spliced(model, inputs, expected_features(model, inputs, [(5, 2)], merge))
    logits = model(inputs_embeds=embeds).logits
    answer = model.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False).tolist()
    assert len(set(answer[0])) > 1, "the model says one word only: the comparison shows nothing"
    assert answer != new_ids(model, inputs), "the whole image gives the same answer: the comparison shows nothing"

    visionzip(model, 5, 2, merge=merge)
    torch.testing.assert_close(left(model(**inputs).logits), logits)
    assert new_ids(model, inputs) == answer


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [{"dominant": 5, "contextual": 2}, {"tokens_per_image": 15}])
def test_a_padded_batch_answers_as_its_prompts_do_one_by_one(kind, budget):
    model = visionzip(make_model(kind), **budget)
    images, prompts = (WIDE, SQUARE), (ONE, OTHER)
    batch = inputs_for(kind, images, prompts)
    assert not batch["attention_mask"].all()
    single = [inputs_for(kind, [i], [p]) for i, p in zip(images, prompts, strict=True)]
    assert new_ids(model, batch) == [new_ids(model, one)[0] for one in single]

    logits = model(**batch).logits
    for row, one in zip(logits, single, strict=True):
        alone = model(**one).logits
        torch.testing.assert_close(left(row[None]), left(alone), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(row[-1], alone[0, -1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_budget_per_image_is_split_over_its_crops():
    model, inputs = make_model("llava_next"), inputs_for("llava_next", (TALL, SQUARE), ("<image> what <image> ?",))
    budgets = [(8, 2), (7, 1)]  # 42 over 4 crops and over 5; about 10 of 64 are contextual
    embeds = spliced(model, inputs, expected_features(model, inputs, budgets))
    logits = model(inputs_embeds=embeds).logits
    torch.testing.assert_close(left(visionzip(model, tokens_per_image=42)(**inputs).logits), logits)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["<image> what <image> ?", "<image><image> what ?"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_images_in_one_prompt(kind, prompt):
    model, inputs = make_model(kind), inputs_for(kind, (TALL, WIDE), (prompt,))
    features = expected_features(model, inputs, [(5, 2)] * 2)
    runs = features if prompt.count("what <image>") else [torch.cat(features)]
    logits = model(inputs_embeds=spliced(model, inputs, runs)).logits
    torch.testing.assert_close(left(visionzip(model, 5, 2)(**inputs).logits), logits)


@torch.no_grad()
def test_more_tokens_than_placeholders():
    """All of CLS and the patches: one more than the processor knows of; an unpadded image has fewer still."""
    for kind, image in (("llava", SQUARE), ("llava_next", picture(200, 8, 4))):
        model, inputs = make_model(kind), inputs_for(kind, [image])
        placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
        expected = expected_features(model, inputs, [(17, 0)])
        assert len(expected[0]) > placeholders
        logits = model(inputs_embeds=spliced(model, inputs, expected)).logits
        zipped_logits = visionzip(model, 17, 0)(**inputs).logits  # as many as there are positions
        torch.testing.assert_close(zipped_logits[:, -8:], logits[:, -8:])
        assert len(new_ids(model, inputs)[0]) == 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_training_on_a_padded_batch(kind, side):
    model, prompts, images = make_model(kind), (ONE, OTHER), (WIDE, SQUARE)
    batch = inputs_for(kind, images, prompts, padding_side=side)
    start = batch["attention_mask"].cumsum(1) <= 1  # a row's first token is not predicted
    skipped = start | (batch["input_ids"] == model.config.image_token_id) | (batch["attention_mask"] == 0)
    batch["labels"] = batch["input_ids"].masked_fill(skipped, -100)
    losses, weights = [], []
    for prompt, image in zip(prompts, images, strict=True):
        one = inputs_for(kind, [image], [prompt])
        embeds = spliced(model, one, expected_features(model, one, [(5, 2)]))
        ids = one["input_ids"][0]
        first = ids.tolist().index(model.config.image_token_id)
        text = ids[ids != model.config.image_token_id]
        visual = torch.full((embeds.shape[1] - len(text),), -100)
        labels = torch.cat([text[:first], visual, text[first:]])
        losses.append(model(inputs_embeds=embeds, labels=labels[None]).loss)
        weights.append(int((labels[1:] != -100).sum()))
    expected = sum(loss * n for loss, n in zip(losses, weights, strict=True)) / sum(weights)

    visionzip(model, 5, 2)
    loss = model(**batch, position_ids=(batch["attention_mask"].cumsum(1) - 1).clamp(min=0)).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    tower = model.model.vision_tower.encoder.layers
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert tower[2].mlp.fc1.weight.grad.abs().sum() > 0
    assert tower[3].mlp.fc1.weight.grad is None, "a layer ran whose output is not read"


@torch.no_grad()
def test_calls_without_pixels_are_as_before():
    model, inputs = make_model(), inputs_for("llava")
    ids = torch.tensor([[1, 8, 9, 10]])
    embeds = model.get_input_embeddings()(ids)
    whole = spliced(model, inputs, expected_features(model, inputs, [(16, 0)]))
    calls = [{"input_ids": ids}, {"inputs_embeds": embeds}, {"inputs_embeds": whole}]
    before = [model(**call).logits for call in calls]
    answers = [model.generate(**call, max_new_tokens=5, do_sample=False) for call in calls]
    visionzip(model, 5, 2)
    assert all(torch.equal(model(**call).logits, logits) for call, logits in zip(calls, before, strict=True))
    again = [model.generate(**call, max_new_tokens=5, do_sample=False) for call in calls]
    assert all(torch.equal(new, old) for new, old in zip(again, answers, strict=True))

    first = model(**inputs, use_cache=True)  # a loop of one's own
    token, cache, found = first.logits[:, -1:].argmax(-1), first.past_key_values, []
    for _ in range(8):
        found.append(int(token))
        token = model(input_ids=token, past_key_values=cache).logits[:, -1:].argmax(-1)
    assert [found] == new_ids(model, inputs)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_to_generate(kind):
    model, inputs = visionzip(make_model(kind), 5, 2), inputs_for(kind, (WIDE, SQUARE), (ONE, OTHER))
    answer, length = new_ids(model, inputs), inputs["input_ids"].shape[1]
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    greedy = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert model.generate(inputs["input_ids"], greedy, **rest)[:, length:].tolist() == answer
    assert new_ids(model, inputs, max_new_tokens=None, max_length=length + 8) == answer
    total = GenerationConfig(max_length=length + 8, do_sample=False, pad_token_id=0)
    assert model.generate(**inputs, generation_config=total)[:, length:].tolist() == answer
    model.generation_config.max_length = length + 8  # the model's own counts the whole prompt too
    assert model.generate(**inputs, do_sample=False)[:, length:].tolist() == answer
    model.generation_config.max_length = None

    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_scores=True)
    assert out.sequences[:, length:].tolist() == answer
    assert out["sequences"] is out.sequences
    assert len(out.scores) == 8

    beams = model.generate(**inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    assert torch.equal(beams[:, :length], inputs["input_ids"].repeat_interleave(2, dim=0))
    for row, (image, prompt) in enumerate([(WIDE, ONE), (SQUARE, OTHER)]):
        one = inputs_for(kind, [image], [prompt])
        alone = model.generate(**one, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
        assert alone[:, one["input_ids"].shape[1] :].tolist() == beams[2 * row : 2 * row + 2, length:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_zip_and_unzip_leave_no_trace(kind):
    model, inputs = make_model(kind), inputs_for(kind)
    parts = (model, model.model, model.model.vision_tower)
    logits, answer, keys, config = (
        model(**inputs).logits,
        new_ids(model, inputs),
        list(model.state_dict()),
        model.config.to_dict(),
    )
    attributes = [dict(vars(part)) for part in parts]
    assert visionzip(model, 9, 3) is model
    visionzip(model, 5, 2)  # replaces
    assert model.config.visionzip["dominant"] == 5
    assert list(model.state_dict()) == keys
    assert left(model(**inputs).logits).shape[1] < logits.shape[1]
    with zipped(model, 3, 1):
        assert model.model.get_image_features(**pixels(inputs)).pooler_output[0].shape[0] % 4 == 0
        assert model.config.visionzip["dominant"] == 3
    assert model.config.visionzip["dominant"] == 5
    zipped_once = visionzip(make_model(kind), 5, 2)
    assert torch.equal(model(**inputs).logits, zipped_once(**inputs).logits)

    assert unzip(model) is model
    unzip(model)  # harmless
    assert [dict(vars(part)) for part in parts] == attributes
    assert model.config.to_dict() == config
    assert torch.equal(model(**inputs).logits, logits)
    assert new_ids(model, inputs) == answer
    with zipped(model, 5, 2):
        assert torch.equal(model(**inputs).logits, zipped_once(**inputs).logits)
    assert torch.equal(model(**inputs).logits, logits)


def pixels(inputs):
    return {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}


@torch.no_grad()
def test_models_do_not_touch_each_other():
    plain, small, large = make_model(), make_model(), make_model()
    inputs = inputs_for("llava")
    logits = plain(**inputs).logits
    visionzip(small, 5, 2)
    visionzip(large, 9, 3)
    text = logits.shape[1] - SIDE * SIDE
    assert [left(m(**inputs).logits).shape[1] - text for m in (plain, small, large)] == [16, 7, 12]
    assert torch.equal(plain(**inputs).logits, logits)


@torch.no_grad()
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_zipped_too_and_goes_its_own_way(clone):
    model, inputs = visionzip(make_model(), 5, 2), inputs_for("llava")
    logits = model(**inputs).logits
    twin = clone(model)
    unzip(model)
    model.lm_head.weight.zero_()
    assert torch.equal(twin(**inputs).logits, logits)
    assert left(unzip(twin)(**inputs).logits).shape[1] == left(logits).shape[1] + 9


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_setting_can_be_applied_again(kind, tmp_path):
    model, inputs = visionzip(make_model(kind), 5, 2, merge="mean"), inputs_for(kind)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    assert "forward" not in vars(loaded)
    with zipped(loaded, 3, 1):
        pass
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.visionzip == model.config.visionzip
    visionzip(loaded, **loaded.config.visionzip)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_methods_that_accelerate_has_put_on_the_instance_stay():
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Count(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    model, inputs, count = make_model(), inputs_for("llava"), Count()
    add_hook_to_module(model, count)
    hooked = vars(model)["forward"]
    logits = model(**inputs).logits
    assert left(visionzip(model, 5, 2)(**inputs).logits).shape[1] == logits.shape[1] - 9
    assert vars(unzip(model))["forward"] == hooked
    assert torch.equal(model(**inputs).logits, logits)
    assert count.calls == 3

    model = visionzip(make_model(), 5, 2)
    add_hook_to_module(model, count)  # around ours this time
    assert left(model(**inputs).logits).shape[1] == logits.shape[1] - 9
    assert torch.equal(unzip(model)(**inputs).logits, logits)
    assert left(visionzip(model, 5, 2)(**inputs).logits).shape[1] == logits.shape[1] - 9
    assert count.calls == 6


@torch.no_grad()
def test_a_model_inside_peft():
    from peft import LoraConfig, get_peft_model

    model, inputs = make_model(), inputs_for("llava")
    whole = model(**inputs).logits.shape[1]
    wrapped = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM"))
    assert left(visionzip(wrapped, 5, 2)(**inputs).logits).shape[1] == whole - 9
    assert new_ids(wrapped, inputs) == new_ids(wrapped.get_base_model(), inputs)
    assert left(unzip(wrapped)(**inputs).logits).shape[1] == whole


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_answers_are_those_of_our_own_classes(kind, tmp_path):
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.model.builder import load_pretrained_model

    model, images, prompts = make_model(kind), (WIDE, SQUARE, TALL), (ONE, OTHER, ONE)
    model.save_pretrained(tmp_path)
    make_processor(kind).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        tmp_path
    )
    _, ours, _, _ = load_pretrained_model(str(tmp_path), device="cpu")
    for budget in ({"dominant": 5, "contextual": 2}, {"tokens_per_image": 20}):
        visionzip(model, **budget)
        visionzip(ours, **budget)
        for image, prompt in zip(images, prompts, strict=True):
            inputs = inputs_for(kind, [image], [prompt])
            ids, token = inputs["input_ids"][0], model.config.image_token_id
            first = ids.tolist().index(token)
            ids = torch.cat([ids[:first], torch.tensor([IMAGE_TOKEN_INDEX]), ids[first:][ids[first:] != token]])
            given = {"images": inputs["pixel_values"], "image_sizes": [image.size]}
            answer = ours.generate(ids[None], **given, max_new_tokens=8, do_sample=False).tolist()
            assert new_ids(model, inputs) == answer
            ours_logits = ours(input_ids=ids[None], **given).logits
            torch.testing.assert_close(model(**inputs).logits[:, -8:], ours_logits[:, -8:])


def test_wrong_placeholders_are_refused():
    model, inputs = visionzip(make_model(), 5, 2), inputs_for("llava", (SQUARE, SQUARE), ("<image> what <image> ?",))
    ids = inputs["input_ids"]
    rest = {"pixel_values": inputs["pixel_values"]}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"hold 31 image placeholders.* 2 images take \[16, 16\]"):
            call(input_ids=ids[:, 1:], **rest)
    moved = torch.cat([ids[:, 1:18], ids[:, :1], ids[:, 18:]], dim=1)  # 15 and 17
    with pytest.raises(ValueError, match="each in one run"):
        model(input_ids=moved, **rest)
    with pytest.raises(ValueError, match=r"attention_mask \(1, 99\) and input_ids \(1, 34\)"):
        model(input_ids=ids, attention_mask=torch.ones(1, 99), **rest)
    next_model, inputs = visionzip(make_model("llava_next"), 5, 2), inputs_for("llava_next")
    with pytest.raises(ValueError, match="image_sizes"):
        next_model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])


def test_what_cannot_be_zipped_stays_as_it_was():
    for layer, complaint in (([-2, -1], r"\[-2, -1\]"), (0, "=0: .* has 4"), (5, "=5: .* has 4")):
        model = make_model(vision_feature_layer=layer) if layer != 5 else make_model()
        model.config.vision_feature_layer = layer
        config = model.config.to_dict()
        with pytest.raises(ValueError, match=f"vision_feature_layer{complaint}" if layer in (0, 5) else complaint):
            visionzip(model, 5, 2)
        assert "forward" not in vars(unzip(model))
        assert model.config.to_dict() == config
    model = make_model()
    with pytest.raises(ValueError, match=r"18 tokens, but the vision tower gives 17"):
        visionzip(model, 17, 1)
    assert "forward" not in vars(model)

    names = "LlavaForConditionalGeneration.*LlavaNextForConditionalGeneration"
    text = LlamaForCausalLM(LlamaConfig(**make_model().config.text_config.to_dict()))
    with pytest.raises(TypeError, match=f"LlamaForCausalLM .*types {', '.join(ADAPTERS)}"):
        visionzip(text)
    pixtral = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    with pytest.raises(TypeError, match=f"LlavaForConditionalGeneration with a pixtral .*{names}.*clip_vision_model"):
        visionzip(make_model(vision_config=pixtral))


def test_the_package_needs_no_transformers_until_such_a_model_comes():
    code = "import sys, visionzip_patch; sys.exit('transformers' in sys.modules or 'llava' in sys.modules)"
    root = Path(visionzip_patch.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("part", ["vision_tower", "encoder"])
def test_a_hook_that_takes_no_effect_on_a_zipped_model_is_told(part, caplog):
    model, seen = make_model("llava"), []
    vision = model.model.vision_tower
    (vision if part == "vision_tower" else vision.encoder).register_forward_hook(lambda *call: seen.append(part))
    model(**inputs_for("llava"))
    assert seen
    assert not caplog.records
    visionzip(model, 4, 2)
    model(**inputs_for("llava"))
    assert len(seen) == 1
    assert "hooks of another program, which take no effect" in caplog.text
