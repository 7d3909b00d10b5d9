"""Tune with flash-attn 2 where it is installed and there is a GPU, else with SDPA, as `llava.train.train`.

Upstream's scripts start this file: `deepspeed llava/train/train_mem.py --deepspeed zero3.json ...`.
"""

from importlib.util import find_spec

from llava.train.train import leave, main
from llava.train.train import train as train  # upstream's programs import it from here too


def usual_attention() -> str | None:
    """Name the attention to use, as transformers calls it; None leaves the choice to transformers."""
    from torch import cuda

    return "flash_attention_2" if find_spec("flash_attn") and cuda.is_available() else None


if __name__ == "__main__":
    leave(main(attn_implementation=usual_attention()))
