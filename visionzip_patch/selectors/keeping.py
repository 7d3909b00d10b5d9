"""What selectors share: from the tokens that one of them keeps to a whole selection.

Shapes as in `visionzip_patch.selection`.
"""

from torch import Tensor

from visionzip_patch.evidence import Evidence
from visionzip_patch.selection import Selection, assign_rest, mark_best


def keep(evidence: Evidence, is_kept: Tensor, dominant: int, contextual: int) -> Selection:
    """Keep some tokens, and merge the others by the similarity of their keys, which are read only where some merge.

    Args:
        evidence: of the crops; has `keys`.
        is_kept: which tokens stay, (B, L) bool: `dominant` of each crop.
        dominant: D.
        contextual: M.
    """
    keys = evidence.keys if contextual else None
    return assign_rest(is_kept, keys, dominant=dominant, contextual=contextual)


def keep_best(evidence: Evidence, scores: Tensor, dominant: int, contextual: int) -> Selection:
    """Keep CLS, if there is one, and the patches with the highest of `scores`, (B, P); merge the others as `keep`."""
    return keep(evidence, mark_best(scores, dominant, evidence.length), dominant, contextual)
