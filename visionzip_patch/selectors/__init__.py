"""The ways to choose tokens: a file each, and a line each in `SELECTORS`.

To add one, write `choose(evidence, dominant, contextual) -> Selection` in a file beside the others, and give it a name
in the table. It need not be a ranking: whatever makes a `Selection` is a selector. `selectors.keeping` has what most of
them share: the merging of what is not kept.

Imports no torch, so that commands can offer the names before it is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visionzip_patch.selection import Selection

Choose = Callable[..., "Selection"]


@dataclass(frozen=True)
class Selector:
    """One way to choose tokens.

    Args:
        choose: a pure function of an `Evidence`, of the dominant and the contextual tokens of a crop, and of
            `parameters` by keyword. Or where it is, "module:name": then it is imported when it is first needed.
        needs: what it reads of the evidence; nothing else is there for it, or computed for its sake.
        label: what reports and plots call it.
        help: what it keeps, in a few words.
        parameters: fields of `VisionZipConfig` that it is given.
    """

    choose: Choose | str
    needs: frozenset[str]
    label: str
    help: str
    parameters: tuple[str, ...] = ()

    def load(self) -> Choose:
        """Return the function, imported if need be."""
        return resolve_name(self.choose) if isinstance(self.choose, str) else self.choose


SELECTORS = {
    "visionzip": Selector(
        "visionzip_patch.selectors.visionzip:choose",
        needs=frozenset({"saliency", "keys"}),
        label="VisionZip",
        help="patches that draw the most attention",
    ),
    "random": Selector(
        "visionzip_patch.selectors.random:choose",
        needs=frozenset({"keys"}),
        label="random",
        help="patches drawn at random, the same of every image",
        parameters=("seed",),
    ),
    "uniform": Selector(
        "visionzip_patch.selectors.uniform:choose",
        needs=frozenset({"keys"}),
        label="uniform",
        help="patches spread evenly over the image",
    ),
}
