"""Training: resuming changes nothing, text blocks do not see each other, and the export has LLaVA's layout."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor

from playground.signs.export import LLAVA_FOLDER, TOWER_FOLDER
from playground.signs.lessons import CHOICE, IGNORE, make_batch
from playground.signs.model import SignReader, drop_tokens
from playground.signs.scenes import GRID, KINDS, make_scene, questions
from playground.signs.tokenizer import BEFORE_IMAGE, LETTER_ANSWER, after_image, train_tokenizer
from playground.signs.train import Recipe, Trainer, main

TINY = Recipe(read_steps=2, answer_steps=2, choose_steps=1, batch_size=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    return SentencePieceProcessor(model_file=str(tokenizer_file))


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return SignReader().eval()


def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer_file, tmp_path):
    """Interrupted inside each stage and between them."""
    whole = Trainer(TINY, tokenizer_file, CPU)
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    assert len(list(whole.fit(TINY.steps))) == TINY.steps == 5

    state = tmp_path / "state.pt"
    for until in (1, 2, 3, 4, 5):
        part = Trainer(TINY, tokenizer_file, CPU)
        if until > 1:
            part.load(state)
        list(part.fit(until))
        assert part.step == until
        part.save(state)

    torch.testing.assert_close(part.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    changed = {name for name, value in whole.model.state_dict().items() if not torch.equal(value, start[name])}
    assert {name.split(".")[0] for name in changed} == {name for name, _ in whole.model.named_children()}


def test_a_state_of_another_recipe_is_refused(tokenizer_file, tmp_path):
    Trainer(TINY, tokenizer_file, CPU).save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"'read_steps': 2.*'read_steps': 9"):
        Trainer(replace(TINY, read_steps=9), tokenizer_file, CPU).load(tmp_path / "state.pt")


def test_the_command_writes_a_checkpoint_of_llavas_layout(tmp_path):
    steps = ["--read-steps", "1", "--answer-steps", "1", "--choose-steps", "1"]
    main(["--out", str(tmp_path), *steps, "--batch-size", "2", "--test-scenes", "4"])
    weights = load_file(tmp_path / LLAVA_FOLDER / "model.safetensors")
    tower = load_file(tmp_path / TOWER_FOLDER / "model.safetensors")
    assert {value.dtype for value in (*weights.values(), *tower.values())} == {torch.float16}
    assert {f"model.mm_projector.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")} <= set(weights)
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= set(weights)
    assert all(key.startswith("vision_model.") for key in tower)
    assert "vision_model.embeddings.class_embedding" in tower
    config = json.loads((tmp_path / LLAVA_FOLDER / "config.json").read_text())
    assert (tmp_path / LLAVA_FOLDER / config["mm_vision_tower"]).resolve() == tmp_path / TOWER_FOLDER
    record = json.loads((tmp_path / LLAVA_FOLDER / "training.json").read_text())
    assert record["steps"] == 3
    assert set(record["accuracy"]) == {"all", *KINDS, "choice"}


def test_labels_are_the_answers_and_nothing_else(tokenizer):
    seeds = range(8)
    batch = make_batch(seeds, tokenizer)
    checked = 0
    for row, seed in enumerate(seeds):
        answers = {after_image(asked.text): asked.answer for asked in questions(make_scene(seed).signs, seed)}
        for ids, labels, kind in zip(batch.ids[row], batch.labels[row], batch.kinds[row], strict=True):
            if kind < 0:
                continue
            learnt = labels != IGNORE
            begins = int(learnt.int().argmax())
            assert ids[:begins].tolist() in [tokenizer.encode(prompt) for prompt in answers]
            prompt = tokenizer.decode(ids[:begins].tolist())
            expected = [*tokenizer.encode(f"{prompt} {answers[prompt]}")[begins:], 2]
            assert labels[learnt].tolist() == ids[learnt].tolist() == expected
            checked += 1
    assert checked >= 3 * len(seeds)


def test_choices_hold_the_answer_once_and_its_letter_is_learnt(tokenizer):
    seeds = range(8)
    batch, letters = make_batch(seeds, tokenizer, choices=1.0), set()
    for row, seed in enumerate(seeds):
        answers = {asked.text: asked.answer for asked in questions(make_scene(seed).signs, seed)}
        for ids, labels, kind in zip(batch.ids[row], batch.labels[row], batch.kinds[row], strict=True):
            if kind < 0:
                continue
            assert kind == CHOICE
            learnt = labels != IGNORE
            prompt = tokenizer.decode(ids[: int(learnt.int().argmax())].tolist())
            _, question, *offered, instruction = prompt.split("\n")
            choices = dict(line.split(". ") for line in offered)
            assert instruction == f"{LETTER_ANSWER} ASSISTANT:"
            letter = tokenizer.decode(labels[learnt][:-1].tolist())
            assert choices[letter] == answers[question]
            assert len(set(choices.values())) == len(choices) == (2 if "is there" in question else 4)
            letters.add(letter)
    assert letters == set("ABCD")


def test_packed_blocks_equal_blocks_alone(reader, tokenizer):
    """The shared prefix is only a saving: each block sees the prompt, the image and itself, at the same positions."""
    batch = make_batch(range(2), tokenizer)
    prefix = torch.tensor([[1, *tokenizer.encode(BEFORE_IMAGE)]])
    features = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0))
    llama = reader.language.model
    with torch.no_grad():
        packed = reader.read_answers(features, prefix, batch.ids)
        for block in range(batch.ids.shape[1]):
            text = llama.embed_tokens(batch.ids[:, block])
            before = llama.embed_tokens(prefix).expand(2, -1, -1)
            alone = llama(inputs_embeds=torch.cat([before, reader.projector(features), text], 1)).last_hidden_state
            torch.testing.assert_close(packed[:, block], alone[:, -text.shape[1] :])


def test_token_dropout_keeps_true_patches_in_order():
    hidden = torch.arange(1 + GRID * GRID, dtype=torch.float32).view(1, -1, 1).expand(3, -1, 128)  # value = position
    sizes, with_cls = set(), set()
    for seed in range(60):
        subset = drop_tokens(hidden, seed)[..., 0]
        torch.testing.assert_close(subset, drop_tokens(hidden, seed)[..., 0])
        assert (subset.diff() > 0).all()
        sizes.add(subset.shape[1])
        with_cls.add(bool(subset[0, 0] == 0))
    assert min(sizes) < 10 < 50 < max(sizes)
    assert with_cls == {True, False}
