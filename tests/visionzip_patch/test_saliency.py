"""The recomputed attention equals what an eager encoder stores."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from visionzip_patch import saliency
from visionzip_patch.encoder import queries_keys
from visionzip_patch.saliency import cls_saliency, received_saliency, token_saliency

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 8,
}


def inspect(encoder):
    """Input, attention map and keys of the second to last layer, by hooks and the eager kernel."""
    torch.manual_seed(0)
    layer, seen = encoder.encoder.layers[-2], {}
    layer.register_forward_pre_hook(lambda module, args: seen.update(before=args[0]))
    layer.self_attn.register_forward_hook(lambda module, args, out: seen.update(attention=out[1]))
    layer.self_attn.k_proj.register_forward_hook(lambda module, args, out: seen.update(keys=out))
    with torch.no_grad():
        encoder(torch.randn(2, 3, 56, 56))
    return layer, seen["before"], seen["attention"], seen["keys"].unflatten(-1, (4, 8)).mean(2)


@torch.no_grad()
def test_cls_saliency_is_the_cls_row_of_eager_attention():
    encoder = CLIPVisionModel(CLIPVisionConfig(**SIZE, attn_implementation="eager")).eval()
    layer, before, attention, keys = inspect(encoder)
    found = queries_keys(layer, before, slice(0, 1))
    scores = cls_saliency(*found)
    torch.testing.assert_close(scores, attention[:, :, 0, 1:].sum(1))
    torch.testing.assert_close(found.keys.mean(1), keys)
    assert torch.equal(token_saliency(*found, has_cls=True), scores)
    torch.testing.assert_close(cls_saliency(*queries_keys(layer, before)), scores)  # other queries are not read
    assert (scores.sum(1) <= 4).all()


@torch.no_grad()
@pytest.mark.parametrize("block", [7, 49, 128])
def test_received_saliency_is_the_mean_over_heads_and_queries(monkeypatch, block):
    monkeypatch.setattr(saliency, "QUERY_BLOCK", block)
    encoder = SiglipVisionModel(SiglipVisionConfig(**SIZE, vision_use_head=False, attn_implementation="eager")).eval()
    layer, before, attention, keys = inspect(encoder)
    found = queries_keys(layer, before)
    scores = received_saliency(*found)
    torch.testing.assert_close(scores, attention.mean((1, 2)))
    torch.testing.assert_close(found.keys.mean(1), keys)
    assert torch.equal(token_saliency(*found, has_cls=False), scores)
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
