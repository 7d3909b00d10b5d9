"""What the examples look at: a checkpoint, a budget, a picture and a question about it.

`python examples/NAME.py` takes the embedded model; `python examples/NAME.py CHECKPOINT [DOMINANT CONTEXTUAL]` another.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages of this checkout, whether they are installed or not

from llava.inference.instructions import SHORT  # noqa: E402

CHECKPOINT, *budget = sys.argv[1:] or (str(ROOT / "playground/checkpoints/llava-signs"), 6, 1)
DOMINANT, CONTEXTUAL = map(int, budget or (54, 10))
PICTURE = ROOT / "playground/data/eval/signs/train_images/sign000000000.png"
QUESTION = "what word is on the green sign?" + SHORT
