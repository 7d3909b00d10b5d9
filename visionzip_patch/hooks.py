"""Methods and hooks of other programs: found out, so that they take effect or are told that they do not.

Token-reduction and analysis code replaces methods of a model, or hooks its parts. A vision encoder's layers are run
here one by one, as far as the one that is read: what waits for a call of the whole would be passed by without a word.
"""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

# These place, cut up or compile modules, and change nothing of what they compute.
MOVERS = ("accelerate.", "deepspeed.", "torch.")


def is_replaced(owner, name: str, ours: Callable) -> bool:
    """Tell whether `owner.name`, of its class or its own, is another program's instead of `ours`."""
    method = getattr(owner, name)
    if name == "forward" and hasattr(owner, "_hf_hook"):  # accelerate keeps here what it has put its own around
        method = owner._old_forward
    return getattr(method, "__func__", method) is not ours and not is_by_mover(method)


def is_hooked(module: nn.Module) -> bool:
    """Tell whether a call of `module` would run hooks of another program."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return not all(map(is_by_mover, hooks))


def is_by_mover(function: Callable) -> bool:
    """Tell whether a function is of a program that places or compiles modules, and changes nothing."""
    return (getattr(function, "__module__", None) or "").startswith(MOVERS)


def changes_forward(module: nn.Module, ours: Callable | None = None) -> bool:
    """Tell whether a call of `module` would run another program's forward, or hooks.

    Args:
        module: one of transformers, or of ours.
        ours: its forward, where that is not transformers' own.
    """
    forward: Any = module._old_forward if hasattr(module, "_hf_hook") else module.forward
    forward = getattr(forward, "__func__", forward)
    is_known = forward is ours or (forward.__module__ or "").startswith("transformers.") or is_by_mover(forward)
    return is_hooked(module) or not is_known


def warn_of_idle_encoder(*modules: nn.Module) -> None:
    """Warn if another program waits for a call of one of these modules around an encoder's layers: there is none."""
    for module in filter(changes_forward, modules):
        warn_once(
            logger,
            "%s has %s of another program, which take no effect: the layers of the vision encoder are run one by one, "
            "as far as the one that is read. Hook those layers.",
            type(module).__name__,
            "hooks" if is_hooked(module) else "a forward",
        )
