"""Which token comes next and when an answer ends, as far as the engine obeys transformers' GenerationConfig.

Shapes: B rows, V vocabulary.
"""

import copy

import torch
from torch import Tensor
from transformers import GenerationConfig, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llava.model.typed import CausalLM

SUPPORTED = {  # fields of a GenerationConfig that `answer` obeys; the others must be at their defaults
    *("max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "eos_token_id", "pad_token_id"),
    *("use_cache", "bos_token_id", "transformers_version", "_from_model_config"),
}

NEUTRAL = {  # values of other fields that change no answer; so do None, False and what is empty
    **dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1.0),
    **dict.fromkeys(("guidance_scale", "typical_p"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "diversity_penalty", "penalty_alpha"), 0.0),
    **{"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4},
    **{"assistant_lookbehind": 10, "target_lookbehind": 10},
}
OF_BEAMS = {"early_stopping", "length_penalty", "low_memory"}  # nobody reads these where there is one beam
OF_SAMPLES = {"typical_p", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff"}  # nor these without do_sample


def choose(logits: Tensor, config: GenerationConfig) -> Tensor:
    """Choose the next token of each row, greedily or by sampling: logits (B, V) -> ids (B,)."""
    if not config.do_sample:
        return logits.argmax(-1)
    scores = logits.float().nan_to_num()  # sampling from NaN stops a GPU for good
    warpers = []
    if config.temperature not in (None, 1.0):
        warpers.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p not in (None, 1.0):
        warpers.append(TopPLogitsWarper(config.top_p))
    for warp in warpers:
        scores = warp(None, scores)  # pyright: ignore[reportArgumentType]  # these read no ids
    return torch.multinomial(scores.softmax(-1), 1).squeeze(1)


def configure(model: CausalLM, kwargs: dict) -> tuple[GenerationConfig, set[str]]:
    """Put arguments of `generate` into a model's generation config.

    Args:
        model: a LLaVA model.
        kwargs: as `transformers.GenerationMixin.generate`.

    Returns:
        The settings, and the names of those arguments that ask for more than the engine can do.
    """
    config = copy.deepcopy(kwargs.get("generation_config")) or GenerationConfig()
    config.update(**model.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
    kwargs = {name: value for name, value in kwargs.items() if name not in ("generation_config", "streamer")}
    unknown = config.update(**kwargs)
    config.do_sample = bool(config.do_sample)
    for name, default in (("temperature", 1.0), ("top_k", 50), ("top_p", 1.0)):
        if name not in kwargs and getattr(config, name) is None:
            setattr(config, name, default)
    asked = {name for name, value in config.to_diff_dict().items() if not is_neutral(name, value)} - SUPPORTED
    asked -= OF_BEAMS if config.num_beams in (None, 1) else set()
    asked -= OF_SAMPLES if not config.do_sample else set()
    asked |= {name for name, value in unknown.items() if not is_neutral(name, value)}
    return config, asked


def is_neutral(name: str, value) -> bool:
    """Return whether a setting of generation changes nothing."""
    return value is None or value is False or value in ([], {}, ()) or (name in NEUTRAL and value == NEUTRAL[name])


def new_tokens(config: GenerationConfig, prompt: int) -> int:
    """Return how many tokens an answer may have, as transformers counts where prompts are embeddings.

    Args:
        config: `max_new_tokens`, or `max_length`, which counts the prompt too; 20 without either.
        prompt: tokens of the longest prompt.

    Raises:
        ValueError: the prompt is as long as `max_length`, or longer.
    """
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        return 20
    if config.max_length <= prompt:
        raise ValueError(
            f"max_length={config.max_length} counts the prompt, and the longest has {prompt} tokens: raise it, or pass "
            f"max_new_tokens."
        )
    return config.max_length - prompt


def end_tokens(config: GenerationConfig) -> list[int]:
    """Return the ids that end an answer."""
    ids = config.eos_token_id
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]


def pad_token(config: GenerationConfig) -> int:
    """Return the id that follows the end of a short answer: the pad token, else the first that ends one, else 0."""
    return config.pad_token_id if config.pad_token_id is not None else [*end_tokens(config), 0][0]
