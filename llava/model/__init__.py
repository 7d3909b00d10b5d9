"""Towers, projectors, language models, and the loader that puts them together."""

from importlib import import_module

# Upstream's exports, imported when they are asked for: `llava.model.anyres` alone does not cost the language models.
EXPORTS = {
    "LlavaConfig": "llava_llama",
    "LlavaLlamaForCausalLM": "llava_llama",
    "LlavaMistralConfig": "llava_mistral",
    "LlavaMistralForCausalLM": "llava_mistral",
    "LlavaQwenConfig": "llava_qwen",
    "LlavaQwenForCausalLM": "llava_qwen",
}
# `from llava.model import *` is how upstream's programs begin: it registers the Auto classes too.
__all__ = [*EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]  # a list that is computed


def __getattr__(name: str):
    if name in EXPORTS:
        return getattr(import_module(f"llava.model.language_model.{EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
