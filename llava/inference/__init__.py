"""Ask a model: questions in batches, conversations, budgets; what evaluation, chat, analysis and training share."""

from importlib import import_module

# Imported when they are asked for: a command that only reads its flags needs no torch.
EXPORTS = {
    "ChatSession": "chat",
    "Decoding": "decoding",
    "Picture": "preprocess",
    "generate_batch": "batch",
    "load": "loading",
    "read_picture": "preprocess",
}
__all__ = [*EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]  # a list that is computed


def __getattr__(name: str):
    if name in EXPORTS:
        return getattr(import_module(f"llava.inference.{EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
