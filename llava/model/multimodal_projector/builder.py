"""Projectors: from the vision tower's channels to the language model's."""

import re

from torch import nn

KNOWN_PROJECTORS = re.compile(r"identity|linear|mlp([1-9]\d?)x_gelu")
POSSIBLE_PROJECTORS = "linear, mlp2x_gelu (any number up to 99) or identity"


def build_vision_projector(config, delay_load: bool = False, **kwargs) -> nn.Module:
    """Make a projector: (…, config.mm_hidden_size) -> (…, config.hidden_size).

    Args:
        config: `mm_projector_type` is `linear`, `mlpNx_gelu` (N linear layers) or `identity`; without it, `linear`.
        delay_load: not used; taken because upstream's callers pass it.
        **kwargs: not used, either.

    Raises:
        ValueError: an unknown type.
    """
    kind = getattr(config, "mm_projector_type", None) or "linear"
    if not (known := KNOWN_PROJECTORS.fullmatch(kind)):
        raise ValueError(f"mm_projector_type={kind!r} is unknown; choose {POSSIBLE_PROJECTORS}.")
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(1, int(known[1])):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
