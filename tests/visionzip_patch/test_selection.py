"""The algorithm against a plain loop that follows its description word by word."""

import pytest
import torch
import torch.nn.functional as F

from visionzip_patch import Selection, compress, select


def zip_by_hand(features, keys, saliency, dominant, contextual, merge="sum"):
    """One crop at a time, one token at a time."""
    results = []
    cls = features.shape[1] - saliency.shape[1]
    for feature, key, score in zip(features, keys, saliency, strict=True):
        best = sorted(range(len(score)), key=lambda i: -score[i])[: dominant - cls]
        kept = sorted({0} | {i + cls for i in best}) if cls else sorted(best)
        rest = [i for i in range(len(feature)) if i not in kept]
        out = [feature[i] for i in kept]
        if contextual:
            step = max(1, len(rest) // contextual)
            targets = rest[::step][:contextual]
            joined = {t: [] for t in targets}
            for i in rest:
                if i not in targets:
                    similarity = [F.cosine_similarity(key[i], key[t], dim=0) for t in targets]
                    joined[targets[int(torch.stack(similarity).argmax())]].append(feature[i])
            for t in targets:
                if merge == "sum":
                    out.append(feature[t] + (sum(joined[t]) / len(joined[t]) if joined[t] else 0))
                else:
                    out.append(sum(joined[t], feature[t]) / (1 + len(joined[t])))
        results.append(torch.stack(out))
    return torch.stack(results)


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    features, keys = torch.randn(3, 37, 8, generator=generator), torch.randn(3, 37, 4, generator=generator)
    return features, keys, torch.rand(3, 37, generator=generator)


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("merge", ["sum", "mean"])
@pytest.mark.parametrize(
    ("dominant", "contextual"), [(1, 1), (5, 3), (12, 7), (20, 17), (36, 1), (30, 4), (6, 0), (37, 0)]
)
def test_compress_follows_the_description(sample, cls, merge, dominant, contextual):
    features, keys, saliency = sample
    saliency = saliency[:, 1:] if cls else saliency
    budget = {"dominant": dominant, "contextual": contextual, "merge": merge}
    expected = zip_by_hand(features, keys, saliency, **budget)
    assert expected.shape[1] == dominant + contextual
    torch.testing.assert_close(compress(features, keys, saliency, **budget), expected)


def test_dominant_tokens_are_untouched_and_in_raster_order(sample):
    features, keys, saliency = sample
    selection = select(keys, saliency[:, 1:], dominant=9, contextual=4)
    assert (selection.kept.diff() > 0).all()
    assert (selection.kept[:, 0] == 0).all()
    out = selection.apply(features)
    assert torch.equal(out[:, :9], torch.stack([f[i] for f, i in zip(features, selection.kept, strict=True)]))


def test_every_token_is_kept_a_target_or_merged_once(sample):
    _, keys, saliency = sample
    selection = select(keys, saliency, dominant=9, contextual=4)
    everything = torch.cat([selection.kept, selection.targets, selection.others], dim=1)
    assert torch.equal(everything.sort(dim=1).values, torch.arange(37).expand(3, -1))


def test_a_selection_is_data(sample):
    """Any features of the grid can be taken, with a selection made elsewhere or by hand."""
    features, _, _ = sample
    picked = Selection(*(torch.tensor([i]) for i in ([2, 5], [7], [8, 9], [0, 0])))
    out = picked.apply(features[:1])
    torch.testing.assert_close(
        out[0], torch.stack([features[0, 2], features[0, 5], features[0, 7] + features[0, 8:10].mean(0)])
    )


def test_counts_beyond_what_bf16_can_hold():
    """513 tokens join one target: a count in bf16 would stop at 256."""
    features = torch.ones(1, 515, 2, dtype=torch.bfloat16)
    out = compress(features, torch.ones(1, 515, 4), torch.rand(1, 514), dominant=1, contextual=1)
    assert torch.equal(out[0, 1], torch.full((2,), 2.0, dtype=torch.bfloat16))


def test_a_mean_of_many_large_tokens_does_not_overflow():
    features = torch.full((1, 577, 2), 150.0, dtype=torch.float16)
    for merge, expected in (("sum", 300.0), ("mean", 150.0)):
        out = compress(features, torch.ones(1, 577, 4), torch.rand(1, 576), dominant=1, contextual=1, merge=merge)
        assert torch.equal(out[0, 1], torch.full((2,), expected, dtype=torch.float16))


def test_autocast_changes_nothing():
    """A model trained under autocast sees the tokens that it will see at inference."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 1, 16, generator=generator)
    keys = base + 0.05 * torch.randn(2, 200, 16, generator=generator)  # so alike that bf16 would confuse them
    call = (keys, torch.rand(2, 199, generator=generator))
    with torch.autocast("cpu", torch.bfloat16):
        inside = select(*call, dominant=9, contextual=30)
    for a, b in zip(inside, select(*call, dominant=9, contextual=30), strict=True):
        assert torch.equal(a, b)


def test_a_batch_equals_its_rows(sample):
    features, keys, saliency = sample
    budget = {"dominant": 7, "contextual": 3}
    together = compress(features, keys, saliency, **budget)
    one_by_one = [compress(*(x[i : i + 1] for x in sample), **budget) for i in range(3)]
    assert torch.equal(together, torch.cat(one_by_one))


@pytest.mark.parametrize(
    ("dominant", "contextual", "numbers"),
    [(0, 5, ["dominant=0"]), (-3, 5, ["-3"]), (5, -1, ["contextual=-1"]), (30, 8, ["38", "37"]), (38, 0, ["38", "37"])],
)
def test_a_bad_budget_is_an_error_with_the_numbers(sample, dominant, contextual, numbers):
    features, keys, saliency = sample
    with pytest.raises(ValueError, match=r"dominant|contextual") as error:
        compress(features, keys, saliency, dominant=dominant, contextual=contextual)
    assert all(number in str(error.value) for number in numbers)


def test_mismatched_inputs_and_unknown_merge_are_errors(sample):
    features, keys, saliency = sample
    with pytest.raises(ValueError, match="does not score"):
        select(keys, saliency[:, :30], dominant=5, contextual=2)
    with pytest.raises(ValueError, match=r"median.*sum, mean"):
        select(keys, saliency, dominant=5, contextual=2).apply(features, "median")


def test_gradients_reach_every_token(sample):
    features, keys, saliency = sample
    features.requires_grad_(True)
    compress(features, keys, saliency, dominant=7, contextual=3).sum().backward()
    assert (features.grad != 0).all()


def test_fullgraph_compile(sample):
    compiled = torch.compile(compress, fullgraph=True, backend="eager")
    budget = {"dominant": 7, "contextual": 3}
    assert torch.equal(compiled(*sample, **budget), compress(*sample, **budget))
