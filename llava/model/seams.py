"""Methods and hooks by which other programs change LLaVA: found out, so that they take effect or are told that not.

Upstream's `generate` goes through `encode_images`, the tower's `forward` and transformers' encoder. Token-reduction and
analysis code replaces or hooks these. Ours encodes several images in one pass and runs the encoder's layers itself, so
what is put in the place of a method would be passed by without a word.
"""

import logging
from collections.abc import Callable

from torch import nn

from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)


def is_replaced(owner, name: str, ours: Callable) -> bool:
    """Tell whether `owner.name`, of its class or its own, is another than `ours`.

    What accelerate puts around a method to move tensors does not count.
    """
    method = getattr(owner, "_old_forward", None) if name == "forward" and hasattr(owner, "_hf_hook") else None
    method = getattr(owner, name) if method is None else method
    return getattr(method, "__func__", method) is not ours


def is_hooked(module: nn.Module) -> bool:
    """Tell whether hooks are registered that a call of `module` would run."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def warn_of_hidden_encoder(encoder: nn.Module) -> None:
    """Warn if another program waits for a call of the encoder inside a vision tower: there is none."""
    forward = getattr(encoder, "_old_forward", encoder.forward)
    is_theirs = not getattr(forward, "__module__", "").startswith("transformers.")
    if is_hooked(encoder) or is_theirs:
        warn_once(
            logger,
            "%s has %s of another program, which take no effect: the vision tower runs the layers of its encoder "
            "itself, and stops at the one that is read. Hook those layers, or replace the tower's forward.",
            type(encoder).__name__,
            "hooks" if is_hooked(encoder) else "a forward",
        )
