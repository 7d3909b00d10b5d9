"""Names that differ between the versions of transformers that the project runs on."""

from inspect import signature

from transformers import LlamaForCausalLM

# Keys and values of earlier tokens, as an argument of models and of decoder layers, and in what models return:
# `cache` since transformers 5.24, `past_key_values` before.
CACHE = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"
