"""Towers of any depth, grid, select layer and dtype, CLIP and SigLIP, with and without VisionZip."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llava.model.multimodal_encoder.builder import build_vision_tower
from visionzip_patch import VisionZipConfig, compress
from visionzip_patch.encoder import queries_keys
from visionzip_patch.reducer import VisionZip
from visionzip_patch.saliency import attend, token_saliency
from visionzip_patch.token_order import CLS, MERGED


def zip_tower(tower, *budget, **options):
    tower.reducer = VisionZip(VisionZipConfig(*budget, **options), tower)
    return tower


def pixels(count=2, size=56):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def eager_hidden_states(tower, images):
    """Of the whole encoder, all layers run, collected by hooks."""
    states = []
    encoder = tower.vision_tower.encoder
    handles = [encoder.layers[0].register_forward_pre_hook(lambda m, args: states.append(args[0]))]
    handles += [layer.register_forward_hook(lambda m, args, out: states.append(out)) for layer in encoder.layers]
    tower.vision_tower(images)
    for handle in handles:
        handle.remove()
    return states


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("layer", [-1, -2, 1, 2])
def test_the_selected_layer_is_what_the_whole_encoder_gives(tiny_tower, kind, depth, layer):
    tower = tiny_tower(kind, num_hidden_layers=depth, select_layer=layer)
    states = eager_hidden_states(tower, pixels())
    torch.testing.assert_close(tower(pixels()), states[layer][:, int(tower.has_cls) :])

    # The scores come from the layer whose output is read.
    before = states[(layer if layer > 0 else depth + 1 + layer) - 1]
    found = queries_keys(tower.vision_tower.encoder.layers[layer - 1 if layer > 0 else layer], before)
    saliency = token_saliency(*found, has_cls=tower.has_cls)
    expected = compress(states[layer], found.keys.mean(1), saliency, dominant=5, contextual=2)
    torch.testing.assert_close(zip_tower(tower, 5, 2)(pixels()), expected)


@torch.no_grad()
def test_layers_after_the_one_that_is_read_are_not_run(tiny_tower):
    tower = tiny_tower("clip", num_hidden_layers=4)
    for name in ("encoder.layers.3", "post_layernorm"):
        tower.vision_tower.get_submodule(name).register_forward_hook(lambda *_: pytest.fail("this layer is not needed"))
    tower(pixels())
    zip_tower(tower, 5, 2)(pixels())


@torch.no_grad()
@pytest.mark.parametrize(("image_size", "patch_size"), [(28, 14), (56, 8), (42, 6)])
def test_any_grid(tiny_tower, image_size, patch_size):
    tower = tiny_tower("clip", image_size=image_size, patch_size=patch_size)
    side = image_size // patch_size
    assert (tower.num_patches_per_side, tower.num_patches) == (side, side * side)
    assert tower(pixels(size=image_size)).shape[1] == side * side
    assert zip_tower(tower, 3, 1)(pixels(size=image_size)).shape[1] == 4


@torch.no_grad()
def test_lists_of_images_and_of_crops(tiny_tower):
    for tower in (tiny_tower("clip"), zip_tower(tiny_tower("clip"), 5, 2)):
        together = tower(pixels(5))
        a, b, c = tower([pixels(5)[0], pixels(5)[1:4], pixels(5)[4]])
        assert (a.ndim, b.ndim) == (2, 3)
        torch.testing.assert_close(torch.cat([a[None], b, c[None]]), together)


@torch.no_grad()
def test_scores_do_not_round_under_autocast():
    queries, keys = torch.randn(2, 1, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = attend(queries, keys, 0.3)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, attend(queries, keys, 0.3))


@torch.no_grad()
def test_positions_tell_where_tokens_come_from(tiny_tower):
    tower = zip_tower(tiny_tower("clip"), 5, 2)
    tokens, position, side = tower.features(pixels())
    whole = tower.hidden_states(pixels())[1]
    assert side == 4
    assert (position[:, 0] == CLS).all()
    assert (position[:, 5:] == MERGED).all()
    for b in range(2):
        assert torch.equal(tokens[b, 1:5], whole[b, 1 + position[b, 1:5]])
    siglip = zip_tower(tiny_tower("siglip"), 5, 2)
    assert (siglip.features(pixels()).position[:, :5] >= 0).all()


@torch.no_grad()
def test_a_budget_per_image_is_split_over_its_crops(tiny_tower):
    tower = zip_tower(tiny_tower("clip"), tokens_per_image=12)
    one, four = tower.features_of([pixels(1), pixels(4)])
    assert one.tokens.shape[:2] == (1, 12)
    assert four.tokens.shape[:2] == (4, 3)
    assert (tower.reducer.tokens(1), tower.reducer.tokens(4), tower.reducer.tokens(5)) == (12, 12, 10)
    assert zip_tower(tower, tokens_per_image=500)(pixels()).shape[1] == 17  # no more than there are


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("budget", [(54, 10), (108, 20), (191, 30)])
def test_half_precision_selects_without_rounding(golden, dtype, budget, record_property):
    """Projections are rounded as each CPU does it, and so are mean keys; by those, the choice is as if made in fp64.

    On the golden tower and picture: 24 layers, 577 tokens.
    """
    images = (load_file(golden / "tensors/tower_input.safetensors")["pixel_u8"].float() - 128) / 64
    config = SimpleNamespace(mm_vision_tower=str(golden / "models/clip-tiny-336"))
    tower = zip_tower(build_vision_tower(config), *budget)
    exact = set(tower.select(images).kept[0].tolist())
    tower.to(dtype)
    before, after = tower.hidden_states(images)
    chosen, query, keys = selection_with_projections(tower, before)
    kept, targets, others = (positions[0].tolist() for positions in chosen[:3])
    assert sorted(kept + targets + others) == list(range(577))

    scores = sum(((keys[:, h] @ query[h]) / query.shape[1] ** 0.5).softmax(0) for h in range(len(query)))
    assert kept[0] == 0
    assert scores[kept[1:]].min() > scores[targets + others].max() - 1e-5

    directions = keys.mean(1)
    directions /= directions.norm(dim=1, keepdim=True)
    similarity = directions[others] @ directions[targets].T
    nearest = similarity.gather(1, chosen.nearest[0, :, None])[:, 0]
    assert (nearest >= similarity.amax(1) - torch.finfo(dtype).eps).all()

    tokens = tower(images)
    assert tokens.dtype == dtype
    assert torch.equal(tokens, chosen.apply(after))
    same = len(exact & set(kept)) / budget[0]
    record_property("kept as in fp32", same)
    assert same > 0.8  # more on every CPU seen; how many depends on its kernels


def selection_with_projections(tower, before):
    """The selection, and what it was made of, fp64: CLS's query (H, K) and all keys (L, H, K) of the first crop."""
    attention, heads, seen = tower.selected_layer.self_attn, tower.config.num_attention_heads, []

    def keep(module, args, out):
        seen.append(out[0].double().unflatten(-1, (heads, -1)))  # (L, H, K)

    handles = [projection.register_forward_hook(keep) for projection in (attention.k_proj, attention.q_proj)]
    selection = tower.reducer.select(tower.evidence(before, before))
    for handle in handles:
        handle.remove()
    keys, query = seen
    return selection, query[0], keys


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_fullgraph_compile(tiny_tower, kind):
    tower = zip_tower(tiny_tower(kind), 5, 2)
    compiled = torch.compile(tower.features, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels()).tokens, tower.features(pixels()).tokens)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_fullgraph_compile_with_inductor(tiny_tower, kind):
    tower = zip_tower(tiny_tower(kind), 5, 2)
    compiled = torch.compile(tower.features, fullgraph=True)
    torch.testing.assert_close(compiled(pixels()).tokens, tower.features(pixels()).tokens, atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_no_host_sync_on_a_gpu(tiny_tower, kind):
    tower = zip_tower(tiny_tower(kind).cuda(), 5, 2)
    images = pixels().cuda()
    tower(images)  # warm-up: cuBLAS handles, lazy loading
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens = tower(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tokens.shape[1] == 7


@torch.no_grad()
@pytest.mark.gpu
def test_a_cuda_graph_replays_the_zipped_tower(tiny_tower):
    tower = zip_tower(tiny_tower("clip").cuda(), 5, 2)
    images = pixels().cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tower(images)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = tower(images)
    images.copy_(pixels().flip(0))
    graph.replay()
    torch.testing.assert_close(tokens, tower(images))


def test_gradients_flow_if_the_tower_is_trained(tiny_tower):
    tower = zip_tower(tiny_tower("clip"), 5, 2)
    assert not tower(pixels()).requires_grad  # frozen by default: no autograd graph
    tower.vision_tower.requires_grad_(True)
    tower(pixels()).sum().backward()
    assert tower.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("layer", "depth"), [(0, 3), (4, 3), (-4, 3), (7, 3)])
def test_a_layer_that_is_not_there(tiny_tower, layer, depth):
    with pytest.raises(ValueError, match=f"mm_vision_select_layer={layer}.*{depth} layers"):
        tiny_tower("clip", num_hidden_layers=depth, select_layer=layer)


def test_select_feature_and_selecting_without_a_reducer(tiny_tower):
    assert tiny_tower("clip", select_feature="cls_patch")(pixels()).shape[1] == 17
    with pytest.raises(ValueError, match="choose patch or cls_patch"):
        tiny_tower("clip", select_feature="cls")
    with pytest.raises(ValueError, match="call visionzip"):
        tiny_tower("clip").select(pixels())


def test_the_reducer_is_no_module(tiny_tower):
    tower = tiny_tower("clip")
    keys = list(tower.state_dict())
    zip_tower(tower, 5, 2)
    assert list(tower.state_dict()) == keys
    assert not isinstance(tower.reducer, nn.Module)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_memory_of_a_tower_that_nobody_holds_is_free_at_once(tiny_tower, kind):
    """On a GPU it would else stay taken until the garbage collector comes by."""
    tower = tiny_tower(kind)
    encoder = weakref.ref(tower.vision_tower)
    assert encoder().vision_model is encoder()
    gc.disable()
    try:
        del tower
        assert encoder() is None
    finally:
        gc.enable()
