"""Who chooses the patches: scores are those of attention maps, and choosing all of them changes nothing."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tqdm import tqdm

from llava.analysis.in_memory import prepare
from llava.analysis.misalignment import __main__ as misalignment
from llava.analysis.misalignment import report
from llava.analysis.misalignment.measure import attention_to_images, choose, prepare_masked, top_mask
from llava.eval.tasks import TASKS
from llava.inference.embedded import playground

SILENT = tqdm(disable=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen"])
@pytest.mark.parametrize("layer", [1, 2])
@torch.inference_mode()
def test_attention_is_that_of_eager_maps(tiny_llava, family, layer):
    decoder = tiny_llava(family).get_model()
    rows, images = [torch.randn(length, 48) for length in (30, 21, 26)], [(3, 19), (5, 12), (0, 16)]
    found = list(attention_to_images(decoder, layer, rows, images))
    assert decoder.config._attn_implementation == "sdpa"
    decoder.set_attn_implementation("eager")
    for row, (first, end), attention in zip(rows, images, found, strict=True):
        maps = decoder(inputs_embeds=row[None], output_attentions=True).attentions  # of (1, H, T, T)
        expected = maps[layer - 1][0, :, end:, first:end].mean(0)  # (text, n)
        torch.testing.assert_close(attention.last, expected[-1])
        torch.testing.assert_close(attention.mean, expected.mean(0))


def test_choose_takes_the_highest_in_order():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])
    assert choose(scores, 2).tolist() == [1, 3]
    masked = top_mask(scores, 2)
    assert masked.tolist() == [False, True, False, True, False]
    assert choose(scores, 2, masked).tolist() == [2, 4]


def arguments(*more: str):
    return misalignment.parse_arguments(["--limit", "12", "--batch-size", "5", *more])


@pytest.fixture(scope="module")
def evaluation():
    return prepare(arguments(), str(playground() / "checkpoints/llava-signs"), TASKS["textvqa"])


@pytest.fixture(scope="module")
def masked_eval(evaluation):
    return prepare_masked(replace(evaluation, pictures=evaluation.pictures.copy()))


def test_pixels_are_not_kept(evaluation, masked_eval):
    assert masked_eval.evaluation.pictures == {}
    assert list(masked_eval.images) == list(evaluation.pictures)


def test_with_all_patches_it_is_the_evaluation(evaluation, masked_eval):
    everything = [torch.arange(64)] * 12
    assert masked_eval.accuracy(everything, SILENT) == pytest.approx(evaluation.answer()[1])


def test_a_question_sees_its_own_choice(evaluation, masked_eval, monkeypatch):
    shown = []
    generate = masked_eval.evaluation.model.generate
    monkeypatch.setattr(
        masked_eval.evaluation.model, "generate", lambda *a, **k: shown.extend(k["image_features"]) or generate(*a, **k)
    )
    chosen = [torch.tensor([row, row + 20]) for row in range(12)]
    masked_eval.accuracy(chosen, SILENT)
    order = [prompt for batch in masked_eval.batches() for prompt in batch]
    assert sorted(prompt.row for prompt in order) == list(range(12))
    pictures = [evaluation.pictures[prompt.image].pixels for prompt in order]
    whole = evaluation.model.encode_images(torch.stack(pictures))
    for prompt, tokens, features in zip(order, shown, whole, strict=True):
        torch.testing.assert_close(tokens, features[chosen[prompt.row]])


def test_text_attention_belongs_to_its_question(masked_eval):
    found = masked_eval.text_attention(2, SILENT)
    model, prompt = masked_eval.evaluation.model, masked_eval.prompts[7]
    (features,) = masked_eval.project([masked_eval.images[prompt.image].tokens])
    at = prompt.ids.index(-200)
    embed = model.get_model().embed_tokens
    row = torch.cat([embed(torch.tensor(prompt.ids[:at])), features, embed(torch.tensor(prompt.ids[at + 1 :]))])
    with torch.inference_mode():
        (alone,) = attention_to_images(model.get_model(), 2, [row], [(at, at + 64)])
    torch.testing.assert_close(found[7].last, alone.last)
    torch.testing.assert_close(found[7].mean, alone.mean)


def read(out: Path) -> list[dict]:
    with (out / "misalignment.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def undrawn(monkeypatch):
    """The figure is made but not drawn, which takes longest."""
    monkeypatch.setattr(report, "write_figure", lambda plt, figure, path: plt.close(figure))


@pytest.mark.slow
def test_the_figure_of_the_embedded_model(tmp_path):
    assert misalignment.main(["--limit", "1", "--seeds", "1", "--max-new-tokens", "1", "--out", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "misalignment.png").width == 1800


def test_the_embedded_model(tmp_path, capsys, monkeypatch, undrawn):
    shares = (2, 16)
    monkeypatch.setattr(report, "SHARES", shares)
    assert misalignment.main(["--limit", "4", "--seeds", "2", "--max-new-tokens", "4", "--out", str(tmp_path)]) == 0
    full, *rows = read(tmp_path)
    assert (full["selector"], full["tokens"], full["masked"]) == ("all", "64", "0")
    settings = [(int(row["tokens"]), int(row["masked"]), row["selector"]) for row in rows]
    assert settings == [(64 // share, mask, name) for share in shares for mask in (0, 7) for name in report.CHOOSERS]
    agreement = {(row["selector"], row["masked"], row["tokens"]): float(row["as_tower"]) for row in rows}
    assert all(agreement["tower", "0", str(64 // share)] == 100 for share in shares)
    for name in report.CHOOSERS:
        assert agreement[name, "7", "4"] == 0  # the favourites are not to be had
    assert "– " in capsys.readouterr().out


def test_several_crops_are_one_long_picture(golden, tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr(report, "SHARES", (32,))
    signs = TASKS["textvqa"].embedded.below(playground())
    data = ["--question-file", signs.question_file, "--image-folder", signs.image_folder]
    data += ["--annotation-file", signs.annotation_file, "--limit", "1", "--seeds", "1", "--max-new-tokens", "1"]
    model = golden / "models/llava-v1.6-tiny"
    arguments = [model, *data, "--device", "cpu", "--llm-layer", "1", "--out", tmp_path]
    assert misalignment.main(list(map(str, arguments))) == 0
    full, *rows = read(tmp_path)
    assert int(full["tokens"]) > 2 * int(rows[0]["tokens"]) - 2 > 0
    assert full["on_signs"] == ""


def test_a_layer_that_is_not_there(tmp_path, capsys):
    assert misalignment.main(["--limit", "1", "--llm-layer", "99", "--out", str(tmp_path)]) == 2
    assert "--llm-layer 99: the language model has 3 layers; choose 1 to 3." in capsys.readouterr().err
