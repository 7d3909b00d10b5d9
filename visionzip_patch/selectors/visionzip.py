"""VisionZip's own choice: the patches that draw the most attention.

Source: VisionZip, arXiv 2412.04467, section 3.2.
"""

from visionzip_patch.evidence import Evidence
from visionzip_patch.selection import Selection
from visionzip_patch.selectors.keeping import keep_best


def choose(evidence: Evidence, dominant: int, contextual: int) -> Selection:
    """Keep CLS and the patches that it attends to most; without CLS, those that receive the most attention."""
    return keep_best(evidence, evidence.saliency, dominant, contextual)
