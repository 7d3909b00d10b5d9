"""From the vision tower's channels to the language model's."""

import re

from torch import nn


def build_vision_projector(config, delay_load: bool = False, **kwargs) -> nn.Module:
    """The projector that `config.mm_projector_type` names: `linear`, `mlpNx_gelu` (N linear layers) or `identity`.

    Maps (…, config.mm_hidden_size) to (…, config.hidden_size).

    Raises:
        ValueError: an unknown type.
    """
    kind = getattr(config, "mm_projector_type", None) or "linear"
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    if match := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        layers = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
        for _ in range(1, int(match[1])):
            layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
        return nn.Sequential(*layers)
    raise ValueError(f"mm_projector_type={kind!r} is unknown; choose linear, mlp2x_gelu (any number) or identity.")
