"""Images in every form, batches that equal their rows, and the upstream signatures outside code calls."""

import pytest
import torch
from transformers import DynamicCache

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal import infer_mask
from visionzip_patch import visionzip

IMG = IMAGE_TOKEN_INDEX
FAMILIES = [("llama", "clip"), ("mistral", "clip"), ("qwen", "siglip")]
ANYRES = {
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}


def pixels(*shape):
    return torch.randn(*shape, 3, 56, 56, generator=torch.Generator().manual_seed(len(shape)))


def prompt(length, seed, *image_at):
    ids = torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(seed))
    for place in image_at:
        ids[place] = IMG
    return ids


def pad(prompts, side):
    longest = max(map(len, prompts))
    rows = [torch.zeros(longest - len(p), dtype=torch.long) for p in prompts]
    rows = [torch.cat([r, p] if side == "left" else [p, r]) for p, r in zip(prompts, rows, strict=True)]
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize(("family", "tower"), FAMILIES)
@pytest.mark.parametrize("budget", [None, (5, 2)])
def test_a_batch_answers_as_its_prompts_do_one_by_one(tiny_llava, family, tower, budget):
    model = tiny_llava(family, tower)
    if budget:
        visionzip(model, *budget)
    prompts = [prompt(9, 1, 2), prompt(21, 2, 5, 9), prompt(4, 3), prompt(30, 4, 28)]
    images = pixels(4)
    owners = [images[:1], images[1:3], None, images[3:]]
    call = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    alone = [model.generate(p[None], images=i, **call)[0].tolist() for p, i in zip(prompts, owners, strict=True)]
    assert len({tuple(a) for a in alone}) >= 3  # the model does listen to its prompts
    for side in ("left", "right"):
        ids = pad(prompts, side)
        for mask in (None, ids != 0):
            together = model.generate(ids, images=images, attention_mask=mask, **call)
            assert together.tolist() == alone


@torch.no_grad()
def test_anyres_batches_of_different_grids(tiny_llava):
    for budget in (None, {"dominant": 5, "contextual": 2}, {"tokens_per_image": 12}):
        model = tiny_llava(**ANYRES)
        if budget:
            visionzip(model, **budget)
        images = [pixels(3), pixels(5), pixels(3)]
        sizes = [(50, 110), (100, 100), (120, 40)]
        prompts = [prompt(9, 1, 2), prompt(21, 2, 5), prompt(12, 3, 11)]
        call = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
        alone = [
            model.generate(p[None], images=[i], image_sizes=[s], **call)[0].tolist()
            for p, i, s in zip(prompts, images, sizes, strict=True)
        ]
        together = model.generate(pad(prompts, "right"), images=images, image_sizes=sizes, **call)
        assert together.tolist() == alone
        counts = [len(f) for f in model.image_features(images, sizes)]
        if budget == {"dominant": 5, "contextual": 2}:
            assert counts == [21, 35, 21]
        if budget == {"tokens_per_image": 12}:
            assert counts == [12, 10, 12]


@torch.no_grad()
def test_images_as_tensor_list_and_5d_are_the_same(tiny_llava):
    model = tiny_llava()
    ids, images = prompt(12, 1, 2, 6)[None], pixels(2)
    expected = model(ids, images=images).logits
    for form in (list(images), [image[None] for image in images], images[:, None]):
        torch.testing.assert_close(model(ids, images=form).logits, expected)
    crops = pixels(2, 3)
    flat = model.image_features(crops)
    assert [len(f) for f in flat] == [48, 48]
    torch.testing.assert_close(torch.stack(flat), model.encode_images(crops.flatten(0, 1)).view(2, 48, -1))


@torch.no_grad()
def test_text_only_rows_with_and_without_a_dummy_image(tiny_llava):
    model = tiny_llava()
    ids = pad([prompt(9, 1, 2), prompt(15, 2), prompt(12, 3, 4, 8)], "right")
    mask, images = ids != 0, pixels(4)
    with_dummy = model(ids, attention_mask=mask, images=images).logits
    without = model(ids, attention_mask=mask, images=images[[0, 2, 3]]).logits
    torch.testing.assert_close(with_dummy, without)
    text = model(ids[1:2, :15]).logits
    torch.testing.assert_close(with_dummy[1:2, :15], text, atol=1e-5, rtol=1e-4)


def test_a_text_only_batch_keeps_the_projector_in_the_graph(tiny_llava):
    """Otherwise ranks that drew only text would wait for each other's gradients forever."""
    model = tiny_llava().requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)
    ids = prompt(9, 1)[None]
    model(ids, images=pixels(1), labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.eq(0).all() for p in model.get_model().mm_projector.parameters())


@pytest.mark.parametrize(
    ("rows", "images", "counts"), [(2, 1, "2 .* but 1"), (2, 3, "2 .* but 3"), (0, 2, "0 .* but 2")]
)
def test_a_count_mismatch_names_both_counts(tiny_llava, rows, images, counts):
    ids = prompt(9, 1, *range(2, 2 + rows))[None]
    with pytest.raises(ValueError, match=counts):
        tiny_llava()(ids, images=pixels(images))


def test_other_wrong_calls_are_explained(tiny_llava):
    model, ids = tiny_llava(), prompt(9, 1, 2)[None]
    with pytest.raises(ValueError, match="1 <image> tokens but no images"):
        model(ids)
    with pytest.raises(ValueError, match="1 <image> tokens but no images"):
        model.generate(ids)
    with pytest.raises(ValueError, match="from input_ids and images"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 48))
    with pytest.raises(ValueError, match=r"generate\(\) got no input_ids"):
        model.generate(images=pixels(1))
    with pytest.raises(ValueError, match="neither input_ids nor inputs_embeds"):
        model(images=pixels(1))
    with pytest.raises(ValueError, match="loss_only=True needs labels"):
        model(ids, images=pixels(1), loss_only=True)
    with pytest.raises(ValueError, match="1 images but 2 image_sizes"):
        model(ids, images=[pixels(1)], image_sizes=[(1, 1), (2, 2)])


@torch.no_grad()
def test_the_six_tuple(tiny_llava):
    model, ids = tiny_llava(), prompt(9, 1, 2)[None]
    call = (None, None, None, None, pixels(1))
    none, positions, mask, cache, embeds, labels = model.prepare_inputs_labels_for_multimodal(ids, *call)
    assert (none, positions, mask, cache, labels) == (None,) * 5
    assert embeds.shape == (1, 24, 48)
    same = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, ids, pixels(1))
    assert same[5].eq(IGNORE_INDEX).sum() == 16
    text = prompt(9, 1)[None]
    assert model.prepare_inputs_labels_for_multimodal(text, None, None, None, None, None)[0] is text
    ragged = torch.stack([prompt(9, 1, 2), prompt(9, 2, 2, 3)])
    mask = model.prepare_inputs_labels_for_multimodal(ragged, None, None, None, None, pixels(3))[2]
    assert mask.sum(1).tolist() == [24, 39]


@torch.no_grad()
def test_half_precision_images_on_an_fp32_model(tiny_llava):
    model, ids, images = tiny_llava(), prompt(9, 1, 2)[None], pixels(1)
    assert model(ids, images=images.half()).logits.dtype == torch.float32
    torch.testing.assert_close(model(ids, images=images.half()).logits, model(ids, images=images.half().float()).logits)


@torch.no_grad()
def test_generate_takes_ids_by_either_name_and_text_alone(tiny_llava):
    model, ids = tiny_llava(), prompt(9, 1, 2)[None]
    call = {"do_sample": False, "max_new_tokens": 5}
    assert torch.equal(model.generate(ids, pixels(1), **call), model.generate(input_ids=ids, images=pixels(1), **call))
    text = prompt(9, 1)[None]
    assert torch.equal(model.generate(text, **call), model.generate(text, images=[], **call))


@torch.no_grad()
def test_features_of_an_image_serve_many_questions(tiny_llava):
    model = visionzip(tiny_llava(), 5, 2)
    ids, images = torch.stack([prompt(9, seed, 2) for seed in (1, 2, 3)]), pixels(2)
    call = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    first, second = model.image_features(images)
    reused = model.generate(ids, image_features=[first, second, first], **call)
    assert torch.equal(reused, model.generate(ids, images=images[[0, 1, 0]], **call))


@torch.no_grad()
def test_a_prompt_that_is_cut_is_logged(tiny_llava, caplog):
    model = tiny_llava(tokenizer_model_max_length=20)
    embeds = model.prepare_inputs_labels_for_multimodal(prompt(9, 1, 2)[None], None, None, None, None, pixels(1))[4]
    assert embeds.shape[1] == 20
    assert "4 tokens of a prompt were cut off: tokenizer_model_max_length is 20" in caplog.text


def test_masks_are_inferred_from_runs_of_padding_at_the_ends():
    ids = torch.tensor([[0, 0, 5, 0, 6], [5, 6, 0, 7, 0], [0, 5, IMG, 6, 0]])
    assert infer_mask(ids, 0).int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
    assert infer_mask(ids, None).all()
    assert infer_mask(ids[:1], 0).all()  # one row has no padding


def test_generate_computes_no_logits_of_the_prompt(tiny_llava):
    model, lengths = tiny_llava(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 6, 7]])
    model.generate(ids, images=torch.zeros(1, 3, 56, 56), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert lengths == [1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_has_the_name_of_any_version_of_transformers(tiny_llava, name):
    model, ids, kept = tiny_llava(), prompt(9, 1, 2)[None], DynamicCache()
    whole = torch.cat([ids, torch.tensor([[7, 8]])], dim=1)
    expected = model(whole, images=pixels(1)).logits[:, -1]
    model(ids, images=pixels(1), use_cache=True, **{name: kept})
    length = kept.get_seq_length()
    assert length == ids.shape[1] + 15
    torch.testing.assert_close(model(whole[:, -2:], **{name: kept}).logits[:, -1], expected, atol=1e-4, rtol=1e-4)
    assert kept.get_seq_length() == length + 2
    model.generate(ids, images=pixels(1), max_new_tokens=2, do_sample=False, **{name: (fresh := DynamicCache())})
    assert fresh.get_seq_length() == length + 1


def test_embeddings_beside_images_are_refused(tiny_llava):
    model = tiny_llava()
    with pytest.raises(ValueError, match="inputs_embeds stand in the place of input_ids and images"):
        model(inputs_embeds=torch.zeros(1, 3, model.config.hidden_size), images=torch.zeros(1, 3, 56, 56))
