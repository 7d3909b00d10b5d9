"""LLaVA on Qwen2: its names, and no code of its own.

The three families are written out, not made by a factory: pickles, the Auto classes and type checkers look for a class
statement in the module that a class says it is from.
"""

from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaQwenConfig(Qwen2Config):
    """A Qwen2 config with LLaVA's fields."""

    model_type = "llava_qwen"


class LlavaQwenModel(LlavaMetaModel, Qwen2Model):
    """A Qwen2 decoder with a vision tower and a projector."""

    config_class = LlavaQwenConfig


# forward and generate take images where transformers' take other arguments, as upstream's do.
class LlavaQwenForCausalLM(LlavaMetaForCausalLM, Qwen2ForCausalLM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A Qwen2 language model that takes images."""

    config_class = LlavaQwenConfig
    decoder_class = LlavaQwenModel


# As upstream: importing the class lets the Auto classes read its checkpoints.
AutoConfig.register(LlavaQwenConfig.model_type, LlavaQwenConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaQwenConfig, LlavaQwenForCausalLM, exist_ok=True)
