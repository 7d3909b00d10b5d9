"""What hangs on a vision tower: a setting, turned into selections.

Shapes as in `selection`: B crops, P patches, L tokens, N = D + M tokens that stay, C channels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from visionzip_patch.config import VisionZipConfig
from visionzip_patch.evidence import Evidence
from visionzip_patch.selection import Selection, check_budget
from visionzip_patch.selectors import SELECTORS, Selector
from visionzip_patch.token_order import positions


class Tower(Protocol):
    """What VisionZip asks of a vision tower."""

    reducer: "VisionZip | None"  # the seam: who makes the tokens fewer

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is CLS."""
        ...

    @property
    def num_patches(self) -> int | None:
        """How many patches each crop has, P; None where that depends on the image."""
        ...

    @property
    def gives(self) -> frozenset[str]:
        """The names of the evidence that selectors find here."""
        ...


class Reduced(NamedTuple):
    """The tokens that are left of some crops, and where they come from."""

    tokens: Tensor  # (B, N, C)
    position: Tensor  # (B, N), see `visionzip_patch.token_order`


class VisionZip:
    """Selects tokens of crops by their evidence.

    No module and no parameters, so a tower's `state_dict` stays as it was. Reducers with the same setting and selector
    are equal.

    Args:
        config: the setting.
        tower: whose tokens they are; only its numbers are kept.
        selector: takes the place of the one that the setting names.

    Raises:
        ValueError: the budget asks for more tokens than the tower gives, and both numbers are named; or the selector
            reads what the tower does not give.
    """

    def __init__(self, config: VisionZipConfig, tower: Tower, selector: Selector | None = None):
        self.config, self.has_cls = config, tower.has_cls
        self.selector = SELECTORS[config.selector] if selector is None else selector
        self.choose = self.selector.load()
        if missing := sorted(self.selector.needs - tower.gives):
            raise ValueError(
                f"The selector {self.selector.label} needs {', '.join(missing)}, but this vision tower gives only "
                f"{', '.join(sorted(tower.gives))}."
            )
        self.available = None if tower.num_patches is None else tower.num_patches + int(tower.has_cls)
        if self.available is not None and config.counts:
            check_budget(*config.counts, self.available)

    def tokens(self, crops: int = 1, available: int | None = None) -> int:
        """Count the tokens that are left of an image.

        Args:
            crops: how many the image has.
            available: tokens that the tower gives of each, CLS included; by default what it gives of every crop.
        """
        return crops * sum(self.counts(crops, available))

    def counts(self, crops: int = 1, available: int | None = None) -> tuple[int, int]:
        """Count the dominant and contextual tokens of each crop of an image; see `tokens`.

        Raises:
            ValueError: they are more than there are, or there is less than one for each crop.
        """
        available = self.available if available is None else available
        if available is None:
            raise ValueError("This vision tower gives each image another number of tokens: say how many, `available`.")
        dominant, contextual = self.config.per_crop(crops, available)
        check_budget(dominant, contextual, available)
        return dominant, contextual

    def select(self, evidence: Evidence, *, crops: int = 1) -> Selection:
        """Choose tokens.

        Args:
            evidence: of any number of crops, each for itself.
            crops: how many of these crops make up one image; matters only to a budget per image.

        Raises:
            ValueError: the budget asks for more tokens than there are, or the selector chose another number.
        """
        dominant, contextual = self.counts(crops, evidence.length)
        parameters = {name: getattr(self.config, name) for name in self.selector.parameters}
        selection = self.choose(evidence.only(self.selector.needs), dominant, contextual, **parameters)
        if (found := (selection.kept.shape[1], selection.targets.shape[1])) != (dominant, contextual):
            raise ValueError(
                f"The selector {self.selector.label} was asked for {dominant} + {contextual} tokens of a crop, but "
                f"chose {found[0]} + {found[1]}."
            )
        return selection

    def reduce(self, evidence: Evidence, features: Tensor, *, crops: int = 1) -> Reduced:
        """Select by the evidence, and apply the selection to features of the same tokens.

        Args:
            evidence: as of `select`.
            features: (B, L, C), as a rule the output of the layer that the evidence is of.
            crops: as of `select`.

        Returns:
            Tokens (B, N, C), and their positions (B, N).
        """
        selection = self.select(evidence, crops=crops)
        return Reduced(selection.apply(features, self.config.merge), positions(selection, self.has_cls))

    def reduce_images(
        self, read: Callable[[Tensor, Tensor], Evidence], before: Tensor, after: Tensor, counts: Sequence[int]
    ) -> list[Reduced]:
        """Reduce images of several crops each; those with the same budget in one go.

        Args:
            read: makes the evidence of some crops, from their parts of `before` and `after`.
            before: input of the layer that is read, (B, L, C), the crops of all images one after the other.
            after: output of that layer, (B, L, C).
            counts: how many crops each image has, B in all.

        Returns:
            For each image its tokens (crops, N, C), and their positions (crops, N).
        """
        counts = list(counts)
        if self.config.tokens_per_image is not None and len(set(counts)) > 1:
            parts = zip(before.split(counts), after.split(counts), counts, strict=True)
            return [self.reduce(read(b, a), a, crops=crops) for b, a, crops in parts]
        tokens, position = self.reduce(read(before, after), after, crops=counts[0])
        return [Reduced(t, p) for t, p in zip(tokens.split(counts), position.split(counts), strict=True)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VisionZip) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        """Return what tells all reducers of a tower apart: graphs and encoded images are kept by it."""
        is_named = self.selector == SELECTORS.get(self.config.selector)
        return f"{type(self).__name__}({self.config!r}{'' if is_named else f', {self.selector!r}'})"
