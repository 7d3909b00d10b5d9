"""The VisionZip algorithm: which tokens of a vision tower stay, and what becomes of the others.

Pure functions of tensors, nothing but torch. Shapes are static (no boolean masks, no `.item()`), so the same code runs
under `torch.compile(fullgraph=True)`, in a CUDA graph, and without one GPU-to-host sync.

Shapes: B crops, P patches, L tokens (1 + P with CLS, P without), C channels, K key channels, D dominant tokens
(CLS counts), M contextual tokens, R = L - D tokens left over.

Source: VisionZip, arXiv 2412.04467, section 3.2, and its published code where the two differ.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MERGES = ("sum", "mean")


class Selection(NamedTuple):
    """Which tokens stay and where the others go; made from keys and scores, applied to any features of that grid."""

    kept: Tensor  # (B, D)    positions of the dominant tokens, raster order; kept[:, 0] == 0 is CLS if there is one
    targets: Tensor  # (B, M)    positions of the contextual targets
    others: Tensor  # (B, R-M)  positions of the tokens that are merged into a target; (B, 0) if M is 0
    nearest: Tensor  # (B, R-M)  which of the M targets each of them joins

    def apply(self, features: Tensor, merge: str = "sum") -> Tensor:
        """Gather the dominant tokens and merge the rest into the contextual ones.

        Args:
            features: (B, L, C), any features of the grid the selection was made on.
            merge: "sum" adds to each target the mean of the tokens that joined it, as the published code does and the
                published scores were made; "mean" averages the target and all that joined it, as the paper's text says.

        Returns:
            (B, D + M, C): dominant tokens in raster order, then contextual tokens in the order of their targets.

        Raises:
            ValueError: `merge` is unknown.
        """
        if merge not in MERGES:
            raise ValueError(f"merge={merge!r} is unknown; choose one of {', '.join(MERGES)}.")
        dominant = take(features, self.kept)  # (B, D, C)
        if self.targets.shape[1] == 0:
            return dominant
        with full_precision(features):  # bf16 cannot count past 256, and a sum of hundreds overflows fp16
            target = take(features, self.targets).float()  # (B, M, C)
            member = F.one_hot(self.nearest, self.targets.shape[1]).float()  # (B, R-M, M)
            joined = member.mT @ take(features, self.others).float()  # (B, M, C)
            count = member.sum(1).unsqueeze(-1)  # (B, M, 1)
            contextual = target + joined / count.clamp(min=1) if merge == "sum" else (target + joined) / (count + 1)
        return torch.cat([dominant, contextual.to(features.dtype)], dim=1)


def select(keys: Tensor, saliency: Tensor, *, dominant: int, contextual: int) -> Selection:
    """Choose the dominant tokens, spread targets over the rest, and give every other token its nearest target.

    Args:
        keys: (B, L, K), attention keys averaged over heads; only their direction counts.
        saliency: (B, P), how much each patch matters. P == L - 1 says that token 0 is CLS, which is always kept and
            counted in `dominant`; P == L says that the tower has no CLS.
        dominant: D, at least 1.
        contextual: M, 0 or more; 0 drops what is not dominant.

    Raises:
        ValueError: the shapes do not belong together, or D + M does not fit in L.
    """
    batch, length, _ = keys.shape
    if saliency.shape[0] != batch or length - saliency.shape[1] not in (0, 1):
        raise ValueError(f"saliency {tuple(saliency.shape)} does not score the tokens of keys {tuple(keys.shape)}.")
    check_budget(dominant, contextual, length)
    return assign_rest(mark_best(saliency, dominant, length), keys, dominant=dominant, contextual=contextual)


def mark_best(scores: Tensor, dominant: int, length: int) -> Tensor:
    """Mark the dominant tokens: CLS if there is one, and the patches with the highest scores.

    Args:
        scores: (B, P), of each patch.
        dominant: D; CLS counts.
        length: L: P + 1 says that token 0 is CLS.

    Returns:
        (B, L) bool, True at D tokens of each crop.
    """
    cls = length - scores.shape[1]
    top = scores.topk(dominant - cls, dim=1).indices + cls  # (B, D - cls)
    is_kept = torch.zeros(len(scores), length, dtype=torch.bool, device=scores.device).scatter(1, top, True)
    if cls:
        is_kept[:, 0] = True
    return is_kept


def assign_rest(is_kept: Tensor, keys: Tensor | None, *, dominant: int, contextual: int) -> Selection:
    """Keep the marked tokens, spread targets over the rest, and give every other token its nearest target.

    What is merged has nothing to do with how the kept tokens were chosen.

    Args:
        is_kept: (B, L) bool, True at D tokens of each crop.
        keys: (B, L, K), attention keys averaged over heads; only their direction counts. None will do if M is 0.
        dominant: D.
        contextual: M, 0 or more; 0 drops what is not kept.

    Raises:
        ValueError: there are no keys to merge by.
    """
    kept, dropped = partition(is_kept, dominant)  # (B, D), (B, R)
    if contextual == 0:
        nothing = dropped[:, :0]
        return Selection(kept, nothing, nothing, nothing)
    if keys is None:
        raise ValueError(f"contextual={contextual}: tokens are merged by the similarity of keys, and there are none.")

    # Evenly spaced leftovers are the targets; each other one joins the target with the most similar key.
    slot = torch.arange(dropped.shape[1], device=keys.device)
    stride = max(1, len(slot) // contextual)
    is_target = (slot % stride == 0) & (slot < stride * contextual)
    target_slots, other_slots = partition(is_target, contextual)  # (M,), (R-M,)
    targets, others = dropped[:, target_slots], dropped[:, other_slots]  # (B, M), (B, R-M)
    with full_precision(keys):  # half precision ties too many similarities
        unit = F.normalize(keys.float(), dim=-1)
        similarity = take(unit, others) @ take(unit, targets).mT  # (B, R-M, M)
    return Selection(kept, targets, others, similarity.argmax(-1))


def compress(
    features: Tensor, keys: Tensor, saliency: Tensor, *, dominant: int, contextual: int, merge: str = "sum"
) -> Tensor:
    """Select tokens by `select`, and apply the selection to features of the same tokens.

    Args:
        features: (B, L, C).
        keys: (B, L, K), as of `select`.
        saliency: (B, P), as of `select`.
        dominant: D, at least 1.
        contextual: M, 0 or more.
        merge: as of `Selection.apply`.

    Returns:
        (B, D + M, C): dominant tokens in raster order, then contextual tokens in the order of their targets.

    Raises:
        ValueError: the shapes do not belong together, D + M does not fit in L, or `merge` is unknown.
    """
    return select(keys, saliency, dominant=dominant, contextual=contextual).apply(features, merge)


def check_counts(dominant: int, contextual: int) -> None:
    """Raise a ValueError unless some tower could satisfy the budget."""
    if dominant < 1:
        raise ValueError(f"dominant={dominant}: at least 1 token must be kept (CLS counts, where there is one).")
    if contextual < 0:
        raise ValueError(f"contextual={contextual}: cannot be negative; 0 turns merging off.")


def check_budget(dominant: int, contextual: int, available: int) -> None:
    """Raise a ValueError with both numbers unless `dominant + contextual` tokens can be had from `available`."""
    check_counts(dominant, contextual)
    if dominant + contextual > available:
        few = max(1, available // 9)
        merged = few * 10 // 64
        raise ValueError(
            f"dominant={dominant} + contextual={contextual} asks for {dominant + contextual} tokens, but the vision "
            f"tower gives {available} (CLS counts, where there is one). Lower either number; a ninth, {few - merged} + "
            f"{merged}, is usual."
        )


def full_precision(like: Tensor) -> torch.autocast:
    """Keep fp32 operands fp32 inside the block, also where a caller runs under autocast, so training selects alike."""
    return torch.autocast(like.device.type, enabled=False)


def partition(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the `count` True entries and the False ones along the last axis: the positions of each, in order."""
    order = mask.byte().sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count], order[..., count:]


def take(features: Tensor, index: Tensor) -> Tensor:
    """Gather tokens by their positions: features (B, L, C), index (B, N) -> (B, N, C)."""
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
