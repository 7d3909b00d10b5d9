"""Tokenizers that give the ids LLaVA's checkpoints were trained with.

LLaVA 1.x used transformers' Python LlamaTokenizer, which calls SentencePiece. Transformers 5 rebuilds it with the
`tokenizers` library and differs in three places, each mended here:

- `AutoTokenizer` chooses by `model_type`, and for "llava" chooses a class that loses the space before a text's first
  word. So LlamaTokenizer is loaded by name.
- An unset `legacy` meant True and now means False. So it is always passed.
- A text that begins with a space gets one "▁" less. So the two steps that place "▁" are replaced.
"""

import shutil
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from llava.model.hub import HUB_ARGUMENTS, find
from llava.model.library_errors import blaming
from llava.model.values import check_small_file

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LLAMA_CLASSES = (None, "LlamaTokenizer", "LlamaTokenizerFast")  # None: the config of some old folders names no class


def load_tokenizer(path: str | Path, **kwargs):
    """Load the tokenizer of a checkpoint, so that its ids equal those of the checkpoint's training.

    Args:
        path: a folder or a hub id. A SentencePiece `tokenizer.model` whose config names LlamaTokenizer, or no class, is
            read as LLaMA's; a LLaMA `tokenizer.json` alone is taken as it is written; all else is AutoTokenizer's.
        kwargs: passed on, for instance `padding_side`, `model_max_length`, `revision`. `legacy` (LLaMA only) overrides
            the config: True puts a "▁" before every piece of text between special tokens, False before the first only.

    Raises:
        ValueError: there is no tokenizer at `path`, or it cannot be read.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    path = str(path)
    for name in TOKENIZER_FILES:
        check_small_file(find(path, name, hub))
    try:
        with blaming("its files"):
            return read_tokenizer(path, hub, kwargs)
    except ValueError as error:
        why = str(error).split("\n")[0].strip(".: ")
        raise ValueError(
            f"No tokenizer could be loaded from {path!r} ({why}). A folder needs tokenizer.model or "
            f"tokenizer.json beside tokenizer_config.json. One that holds a projector or LoRA alone has neither: load "
            f"its base model's."
        ) from error


def read_tokenizer(path: str, hub: dict, kwargs: dict):
    """Read a tokenizer with the class that gives the ids of its training."""
    config = get_tokenizer_config(path, **hub)
    if config.get("tokenizer_class") not in LLAMA_CLASSES:
        return AutoTokenizer.from_pretrained(path, **kwargs)
    if model_file := find(path, "tokenizer.model", hub):
        return load_llama(path, model_file, config, kwargs)
    if config.get("tokenizer_class"):
        if not find(path, "tokenizer.json", hub):
            raise ValueError("it has neither tokenizer.model nor tokenizer.json")
        return PreTrainedTokenizerFast.from_pretrained(path, **kwargs)
    return AutoTokenizer.from_pretrained(path, **kwargs)


def save_tokenizer(tokenizer, folder: str | Path) -> None:
    """Save a tokenizer with its `tokenizer.model`, which `save_pretrained` leaves out and LLaVA 1.x needs."""
    tokenizer.save_pretrained(folder)
    source, target = getattr(tokenizer, "vocab_file", None), Path(folder) / "tokenizer.model"
    if source and source.endswith(".model") and not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)


def load_llama(path: str | Path, model_file: str, config: dict, kwargs: dict) -> LlamaTokenizer:
    """Load a SentencePiece tokenizer of Llama's kind so that ids are those of transformers 4, `legacy` or not."""
    prefix = [normalizers.Prepend("▁")] if has_dummy_prefix(model_file) else []
    legacy = kwargs.get("legacy", config.get("legacy"))
    legacy = True if legacy is None else legacy
    tokenizer = LlamaTokenizer.from_pretrained(path, **{**kwargs, "legacy": legacy})
    tokenizer.init_kwargs["legacy"] = legacy  # else it is lost on saving

    # SentencePiece writes every space as "▁" and puts one more in front, whatever the text begins with.
    backend, spaces = tokenizer.backend_tokenizer, normalizers.Replace(" ", "▁")
    if legacy:
        # Each piece of text between special tokens goes through SentencePiece by itself.
        backend.normalizer, backend.pre_tokenizer = normalizers.Sequence([*prefix, spaces]), None
    else:
        # Only the start of the whole text gets a "▁". Metaspace can tell the start, but adds nothing to a text that
        # begins with its own replacement character: let that be " ", which no text contains any more.
        backend.normalizer = spaces
        scheme = "never" if kwargs.get("add_prefix_space", config.get("add_prefix_space")) is False else "first"
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme=scheme, split=False),
                pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False),
            ]
        )
    return tokenizer


def has_dummy_prefix(model_file: str) -> bool:
    """Whether this SentencePiece model puts a "▁" before a text: LLaMA's does, Yi's does not."""
    try:
        pieces = SentencePieceProcessor(model_file=model_file).encode("a", out_type=str)
    except (RuntimeError, OSError):
        size = Path(model_file).stat().st_size
        raise ValueError(
            f"{model_file} ({size} bytes) is no SentencePiece model. A small file may be a Git LFS pointer: fetch it."
        ) from None
    return "".join(pieces).startswith("▁")
