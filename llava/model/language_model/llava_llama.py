"""LLaVA on LLaMA: its names, and no code of its own.

The three families are written out, not made by a factory: pickles, the Auto classes and type checkers look for a class
statement in the module that a class says it is from.
"""

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaConfig(LlamaConfig):
    """A LLaMA config with LLaVA's fields."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """A LLaMA decoder with a vision tower and a projector."""

    config_class = LlavaConfig


# forward and generate take images where transformers' take other arguments, as upstream's do.
class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A LLaMA language model that takes images."""

    config_class = LlavaConfig
    decoder_class = LlavaLlamaModel


# As upstream: importing the class lets the Auto classes read its checkpoints.
AutoConfig.register(LlavaConfig.model_type, LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
