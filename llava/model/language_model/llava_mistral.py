"""LLaVA on Mistral: its names, and no code of its own.

The three families are written out, not made by a factory: pickles, the Auto classes and type checkers look for a class
statement in the module that a class says it is from.
"""

from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, MistralModel

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMistralConfig(MistralConfig):
    """A Mistral config with LLaVA's fields."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """A Mistral decoder with a vision tower and a projector."""

    config_class = LlavaMistralConfig


# forward and generate take images where transformers' take other arguments, as upstream's do.
class LlavaMistralForCausalLM(LlavaMetaForCausalLM, MistralForCausalLM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A Mistral language model that takes images."""

    config_class = LlavaMistralConfig
    decoder_class = LlavaMistralModel


# As upstream: importing the class lets the Auto classes read its checkpoints.
AutoConfig.register(LlavaMistralConfig.model_type, LlavaMistralConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaMistralConfig, LlavaMistralForCausalLM, exist_ok=True)
