"""Measure what an answer takes: tokens, and the time of the model alone."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from llava.inference.chat import ChatSession


class AnswerCost(NamedTuple):
    """What an answer took so far."""

    visual_tokens: int  # of all pictures of the conversation
    computed: int  # tokens that went through the language model, the answer's included
    reused: int  # tokens that went through it at earlier turns
    first_ms: float  # from the question to the first words, new pictures included
    ms_per_token: float | None  # of what followed; None if nothing did


class TimedAnswer(Iterator[str]):
    """The pieces of `session.ask(text, images)`, timed.

    The watch runs while the prompt and the pieces are computed; what the caller does in between is not counted.
    """

    def __init__(self, session: ChatSession, text: str, images: Sequence[Image.Image]):
        self.session = session
        start = time.perf_counter()
        self.stream = session.ask(text, images)
        self.seconds = time.perf_counter() - start
        self.first: tuple[float, int] | None = None  # seconds, and tokens answered, when the first piece was there

    def __next__(self) -> str:
        start = time.perf_counter()
        try:
            return next(self.stream)
        finally:  # the end takes time too, and so does an interruption
            self.seconds += time.perf_counter() - start
            self.first = self.first or (self.seconds, self.session.answered)

    def close(self) -> None:
        self.stream.close()

    def cost(self) -> AnswerCost:
        """Return what the answer took so far; at least one piece must have been asked for."""
        assert self.first is not None, "no piece has been asked for"
        session, (first, words) = self.session, self.first
        more = session.answered - words
        return AnswerCost(
            visual_tokens=sum(len(shown.tokens) for shown in session.images),
            computed=session.computed,
            reused=session.reused,
            first_ms=round(1000 * first, 2),
            ms_per_token=round(1000 * (self.seconds - first) / more, 2) if more > 0 else None,
        )
