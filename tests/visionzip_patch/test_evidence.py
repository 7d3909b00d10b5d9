"""A tower of another kind: fused projections, rotary positions, images of different sizes."""

import pytest
import torch
from torch import nn

from visionzip_patch import VisionZipConfig, compress
from visionzip_patch.evidence import Evidence, attention_evidence
from visionzip_patch.reducer import VisionZip
from visionzip_patch.saliency import QueriesKeys, split_heads

HEADS, HEAD_DIM = 2, 8
GRIDS = [(4, 6), (3, 5)]


class Block(nn.Module):
    """Attention with one projection for queries, keys and values, turned by row and column."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 48)

    def project(self, hidden, grid):
        """Queries, keys and values of one image, (1, H, P, K) each."""
        queries, keys, values = (split_heads(part, HEAD_DIM) for part in self.qkv(self.norm(hidden)).chunk(3, dim=-1))
        angles = positions(grid)
        return turn(queries, angles), turn(keys, angles), values

    def forward(self, hidden, grid):
        queries, keys, values = self.project(hidden, grid)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return hidden + mixed.transpose(1, 2).flatten(2)


def positions(grid):
    """Angles (P, K / 2): the first half turns with the row, the second with the column."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    speeds = 10 ** -torch.arange(HEAD_DIM // 4).float()
    return torch.cat([rows.flatten()[:, None] * speeds, cols.flatten()[:, None] * speeds], dim=1)


def turn(vectors, angles):
    """Turn pairs of channels, as complex numbers: (B, H, P, K)."""
    pairs = torch.view_as_complex(vectors.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class FusedTower:
    """Images as a list of patches (P, 16), each with its own grid: there is no number of patches for all of them."""

    reducer = None
    has_cls = False
    num_patches = None
    gives = frozenset({"saliency", "keys", "features"})

    def __init__(self):
        torch.manual_seed(0)
        self.block = Block()

    def evidence(self, before, after, grid):
        def queries_keys(rows):
            queries, keys, _ = self.block.project(before, grid)
            return QueriesKeys(queries[:, :, rows], keys, HEAD_DIM**-0.5)

        return attention_evidence(after, queries_keys, has_cls=False, grid=grid)

    def features(self, images):
        found = []
        for patches, grid in images:
            after = self.block(patches[None], grid)
            found.append(self.reducer.reduce(self.evidence(patches[None], after, grid), after))
        return found


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(rows * cols, 16, generator=generator), (rows, cols)) for rows, cols in GRIDS]


def attention_map(block, patches, grid):
    """Weights (H, P, P) and keys (P, K), pair of patches by pair of patches."""
    parts = block.qkv(block.norm(patches)).chunk(3, dim=-1)
    queries, keys, values = (part.unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1) for part in parts)
    turned = []
    for part in (queries, keys):
        even, odd, angles = part[..., ::2], part[..., 1::2], positions(grid)
        real, imaginary = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
        turned.append(torch.stack([real, imaginary], dim=-1).flatten(-2))
    weights = (turned[0] @ turned[1].mT / HEAD_DIM**0.5).softmax(-1)
    after = patches + (weights @ values).transpose(0, 1).flatten(1)
    return weights, turned[1].mean(0), after


@torch.no_grad()
def test_fused_rotary_layers_and_images_of_different_lengths(images):
    tower = FusedTower()
    tower.reducer = VisionZip(VisionZipConfig(5, 2), tower)
    for (patches, grid), reduced in zip(images, tower.features(images), strict=True):
        weights, keys, after = attention_map(tower.block, patches, grid)
        expected = compress(after[None], keys[None], weights.mean((0, 1))[None], dominant=5, contextual=2)
        torch.testing.assert_close(reduced.tokens, expected)
        assert reduced.tokens.shape[1] == tower.reducer.tokens(available=len(patches)) == 7


@torch.no_grad()
@pytest.mark.parametrize("selector", ["random", "uniform"])
def test_blind_selectors_take_any_grid(images, selector):
    tower = FusedTower()
    tower.reducer = VisionZip(VisionZipConfig(6, 1, selector=selector), tower)
    wide, narrow = tower.features(images)
    assert (wide.position[0, :6] < 24).all()
    assert (narrow.position[0, :6] < 15).all()
    assert not torch.equal(wide.position, narrow.position)


@torch.no_grad()
def test_a_budget_is_held_against_each_image(images):
    tower = FusedTower()
    tower.reducer = VisionZip(VisionZipConfig(tokens_per_image=20), tower)
    assert [image.tokens.shape[1] for image in tower.features(images)] == [20, 15]  # no more than there are
    tower.reducer = VisionZip(VisionZipConfig(18, 2), tower)
    with pytest.raises(ValueError, match="asks for 20 tokens, but the vision tower gives 15"):
        tower.features(images)
    with pytest.raises(ValueError, match="each image another number of tokens: say how many"):
        tower.reducer.tokens()


@torch.no_grad()
def test_a_tower_may_score_its_patches_itself(images):
    patches, grid = images[0]
    scores = torch.arange(24.0)[None]
    evidence = attention_evidence(
        patches[None], lambda rows: pytest.fail("not needed"), has_cls=False, grid=grid, saliency=lambda: scores
    )
    assert isinstance(evidence, Evidence)
    kept = VisionZip(VisionZipConfig(3, 0), FusedTower()).select(evidence).kept
    assert kept.tolist() == [[21, 22, 23]]
