"""Helpers that scripts written for LLaVA import."""


def disable_torch_init() -> None:
    """Do nothing; kept so that scripts which call it before loading a model run unchanged.

    It once replaced `reset_parameters` of every `torch.nn.Linear` and `LayerNorm` in the process, to save the time of
    initializing weights that a checkpoint overwrites. Transformers 5 builds such models on the meta device, so nothing
    is initialized twice, and layers that other code creates later keep their proper start values.
    """
