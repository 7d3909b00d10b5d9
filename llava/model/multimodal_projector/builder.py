"""From the vision tower's channels to the language model's."""

import re

from torch import nn

KNOWN_PROJECTORS = re.compile(r"identity|linear|mlp[1-9]\d?x_gelu")
POSSIBLE_PROJECTORS = "linear, mlp2x_gelu (any number up to 99) or identity"


def build_vision_projector(config, delay_load: bool = False, **kwargs) -> nn.Module:
    """The projector that `config.mm_projector_type` names: `linear`, `mlpNx_gelu` (N linear layers) or `identity`.

    Maps (…, config.mm_hidden_size) to (…, config.hidden_size).

    Raises:
        ValueError: an unknown type.
    """
    kind = getattr(config, "mm_projector_type", None) or "linear"
    if not KNOWN_PROJECTORS.fullmatch(kind):
        raise ValueError(f"mm_projector_type={kind!r} is unknown; choose {POSSIBLE_PROJECTORS}.")
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    layers = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(1, int(re.search(r"\d+", kind)[0])):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
