"""What a selector may look at, each computed only when it is asked for.

Shapes: B crops of one grid, L tokens of each (1 + P with CLS, P without), P patches, C channels of the tower, K key
channels, D channels of the language model, W tokens of the question.
"""

import copy
import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from visionzip_patch.saliency import QueriesKeys, token_saliency

T = TypeVar("T")


class Evidence:
    """What is known of some crops that have the same grid, and of the question about them.

    Images of different sizes have an evidence each.

    Args:
        features: (B, L, C), the output of the layer that is read, before the projector.
        has_cls: whether token 0 is CLS.
        grid: rows and columns of the P patches; by default a square.
        sources: the functions that compute the rest, by the names of the properties below, as far as a model gives it.
    """

    def __init__(
        self,
        features: Tensor,
        *,
        has_cls: bool,
        grid: tuple[int, int] | None = None,
        **sources: Callable[[], Tensor],
    ):
        self.batch, self.length = features.shape[:2]
        self.device, self.has_cls = features.device, has_cls
        self.patches = self.length - int(has_cls)
        side = math.isqrt(self.patches)
        self.grid = (side, side) if grid is None else grid
        if math.prod(self.grid) != self.patches:
            raise ValueError(f"{self.patches} patches are no grid of {self.grid[0]} x {self.grid[1]}.")
        self.sources = {"features": lambda: features, **{name: once(source) for name, source in sources.items()}}

    @property
    def saliency(self) -> Tensor:
        """How much each patch matters by attention: (B, P), fp32, see `visionzip_patch.saliency`."""
        return self.find("saliency")

    @property
    def keys(self) -> Tensor:
        """Keys of the layer that is read, averaged over heads: (B, L, K)."""
        return self.find("keys")

    @property
    def features(self) -> Tensor:
        """Output of the layer that is read, before the projector: (B, L, C)."""
        return self.find("features")

    @property
    def projected(self) -> Tensor:
        """The patches as the language model gets them, behind the projector: (B, P, D)."""
        return self.find("projected")

    @property
    def words(self) -> Tensor:
        """Embeddings of the question's tokens in the language model: (W, D)."""
        return self.find("words")

    def find(self, name: str) -> Tensor:
        """Compute one of the above, or return it if that was done before.

        Raises:
            ValueError: there is none of that name here; what there is, is named.
        """
        if name not in self.sources:
            raise ValueError(
                f"There is no evidence {name!r} here, only {', '.join(self.sources)}: a selector finds what it "
                f"declares in `needs`, as far as the model gives it."
            )
        return self.sources[name]()

    def only(self, names: frozenset[str]) -> "Evidence":
        """Return the part of this evidence that has these names; what either has computed, both have."""
        part = copy.copy(self)
        part.sources = {name: source for name, source in self.sources.items() if name in names}
        return part


def attention_evidence(
    features: Tensor,
    queries_keys: Callable[[slice], QueriesKeys],
    *,
    has_cls: bool,
    grid: tuple[int, int] | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    **sources: Callable[[], Tensor],
) -> Evidence:
    """Make the evidence of a tower from the queries and keys of the layer that it reads.

    Args:
        features: (B, L, C), that layer's output.
        queries_keys: gives queries (B, H, Q, K) of the tokens in a slice, and keys (B, H, L, K) of all tokens.
        has_cls: whether token 0 is CLS.
        grid: rows and columns of the patches; by default a square.
        project: the projector, (B, P, C) -> (B, P, D), where the tower's model has it.
        sources: as of `Evidence`; they take the place of what is made here.
    """
    attention = once(lambda: queries_keys(slice(0, 1) if has_cls else slice(None)))
    made: dict[str, Callable[[], Tensor]] = {
        "saliency": lambda: token_saliency(*attention(), has_cls=has_cls),
        "keys": lambda: attention().keys.mean(1),
    }
    if project is not None:
        made["projected"] = lambda: project(features[:, int(has_cls) :])
    return Evidence(features, has_cls=has_cls, grid=grid, **{**made, **sources})


def once(compute: Callable[[], T]) -> Callable[[], T]:
    """Return a function that gives what `compute` returns, and calls it at most once."""
    found: list[T] = []

    def value() -> T:
        if not found:
            found.append(compute())
        return found[0]

    return value
