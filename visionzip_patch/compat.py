"""Names that differ between the versions of transformers that the project runs on."""

from inspect import signature

from transformers import LlamaForCausalLM

# Keys and values of earlier tokens, as an argument of models and of decoder layers, and in what models return:
# `cache` since transformers 5.24, `past_key_values` before.
CACHES = ("cache", "past_key_values")
CACHE = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def cache_in(values: dict):
    """Find the cache among arguments or outputs, under whichever name; None if there is none."""
    return next((values[name] for name in CACHES if values.get(name) is not None), None)


def with_one_cache(given: dict) -> dict:
    """Return arguments with the cache under the name that this version of transformers gives it."""
    cache = cache_in(given)
    rest = {name: value for name, value in given.items() if name not in CACHES}
    return rest if cache is None else {**rest, CACHE: cache}
