"""Hold a conversation about images whose past stays in the KV cache, so that a turn costs only what is new in it.

Each turn writes out the whole conversation and compares it with what the cache holds. The beginning that both share is
kept, the rest is computed; so answers are those of a fresh start, whatever came between: an answer that was stopped, a
turn taken back, another question asked in its place, another VisionZip budget.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import image_marker
from llava.inference.decoding import Decoding
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.finite import NotFinite, explain
from llava.model.sampling import configure
from visionzip_patch import VisionZipConfig
from visionzip_patch.reducer import VisionZip

logger = logging.getLogger(__name__)

ROOM = 512  # tokens that a cache is made for; it doubles when they are used up


class ChatImage(NamedTuple):
    """An image of the conversation."""

    key: int  # negative, and never given to another image of the session
    tokens: Tensor  # (n, C), as the language model gets them
    image: Image.Image
    reducer: VisionZip | None  # what chose the tokens; None is all of them


class ChatSession:
    """One conversation with one model. Several may share a model, one speaking at a time.

    Args:
        model, tokenizer, image_processor: from `load_pretrained_model`.
        decoding: template, by default the checkpoint's, sampling, longest answer.
        context_length: most tokens of a conversation; by default what the model's positions allow.

    Attributes:
        messages: (role, text) of each turn so far; text holds <image> where an image was shown.
        computed: tokens that the last turn put through the language model, the answer's included.
        reused: tokens of the last turn that the cache held already.
        answered: tokens of the last answer, its end included.

    Raises:
        ValueError: beams or another setting that the engine cannot do, or an attention kernel other than SDPA.
    """

    def __init__(
        self, model, tokenizer, image_processor, decoding: Decoding | None = None, context_length: int | None = None
    ):
        self.decoding = (decoding or Decoding()).settled(model.config, tokenizer)
        self.config, beyond = configure(model, self.decoding.options(model, tokenizer))
        if beyond:
            raise ValueError(f"A chat cannot do {', '.join(sorted(beyond))}: only greedy or sampled answers.")
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.context_length = model.config.max_position_embeddings if context_length is None else context_length
        self.messages: list[tuple[str, str]] = []
        self.images: list[ChatImage] = []
        self.last_key = 0
        self.sequences = model.engine().open_cache(1, ROOM)
        self.held: list[int] = []  # what the cache holds: ids, and for each token of an image its key
        self.computed = self.reused = self.answered = 0

    def ask(self, text: str, images: Sequence[Image.Image] = ()) -> Iterator[str]:
        """Take a turn; yields the answer in pieces as it comes. Whoever stops listening stops the answer.

        The turn is taken when its first piece is asked for. If the model's VisionZip budget has changed, the images so
        far are encoded anew.

        Args:
            text: what the user says.
            images: shown before the text.

        Raises:
            ValueError: the conversation would not fit the context, the text holds <image>, the session is closed, or
                another turn was taken before this one's first piece.
        """
        if not isinstance(text, str) or isinstance(images, Image.Image | str):
            raise ValueError("ask() takes a text, and a list of PIL images.")
        if wrong := [type(image).__name__ for image in images if not isinstance(image, Image.Image)]:
            raise ValueError(f"An image is given as {wrong[0]}: open it with PIL.Image.open.")
        self.require_open()
        if DEFAULT_IMAGE_TOKEN in text:
            raise ValueError(f"The text holds {DEFAULT_IMAGE_TOKEN!r}, which stands for an image: leave it out.")
        marker = image_marker(getattr(self.model.config, "mm_use_im_start_end", False))
        user, assistant = self.decoding.template.roles
        shown = [old if old.reducer == self.reducer else self.encode(old.image) for old in self.images]
        shown += map(self.encode, images)
        messages = [*self.messages, (user, f"{marker}\n" * len(images) + text)]
        wanted = self.tokens_of(messages, shown)
        if len(wanted) >= self.context_length:
            raise ValueError(
                f"The conversation has {len(wanted)} tokens, and this model's context is {self.context_length}: "
                f"take back a turn, or begin a new conversation."
            )
        return self.answer(self.messages, [*messages, (assistant, "")], shown, wanted)

    def undo(self) -> None:
        """Take back the last question, its images and its answer."""
        user = self.decoding.template.roles[0]
        self.messages = self.messages.copy()
        while self.messages and self.messages.pop()[0] != user:
            pass
        del self.images[sum(text.count(DEFAULT_IMAGE_TOKEN) for _, text in self.messages) :]

    def reset(self) -> None:
        """Begin anew."""
        self.messages, self.images = [], []

    def close(self) -> None:
        """Return the cache's memory to the model's engine. The end of a `with` block does so too."""
        self.sequences.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def budget(self) -> VisionZipConfig | None:
        """Return VisionZip's setting that the model has now; None is all tokens."""
        return self.reducer and self.reducer.config

    @property
    def reducer(self) -> VisionZip | None:
        """Return what chooses the tokens of images now; None leaves all."""
        return self.model.get_vision_tower().reducer

    def require_open(self) -> None:
        """Raise ValueError if the session is closed."""
        if not self.sequences.is_open:
            raise ValueError("This session is closed: begin another.")

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> ChatImage:
        """Compute the tokens of an image at the model's present budget."""
        self.last_key -= 1
        pixels = process_images([image], self.image_processor, self.model.config)[0]
        tokens = self.model.engine().image_features([pixels], [image.size])[0]
        return ChatImage(self.last_key, tokens, image, self.reducer)

    def tokens_of(self, messages: Sequence[tuple[str, str]], shown: Sequence[ChatImage]) -> list[int]:
        """Tokenize the prompt for the next answer: ids, and for each token of an image its key."""
        conversation = self.decoding.template.copy()
        for role, text in messages:
            conversation.append_message(role, text)
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        logger.debug("The model reads %r", prompt)
        ids = tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX)
        spread = ([image.key] * len(image.tokens) for image in shown)
        return [key for token in ids for key in (next(spread) if token == IMAGE_TOKEN_INDEX else [token])]

    def answer(
        self, known: list[tuple[str, str]], messages: list[tuple[str, str]], shown: list[ChatImage], wanted: list[int]
    ) -> Iterator[str]:
        """Take the turn, and note each piece of the answer as it comes: it may stop, or be undone, at any piece.

        An error undoes the turn; so does an interruption before the first piece.
        """
        self.require_open()
        before = self.messages, self.images
        if self.messages is not known:
            raise ValueError("Another turn was taken, or taken back, since this question was asked: ask it again.")
        self.messages, self.images = messages, shown
        role, said = messages[-1][0], ""
        try:
            for text in self.texts(wanted):
                piece, said = text[len(said) :], text
                messages[-1] = (role, said.replace(DEFAULT_IMAGE_TOKEN, "image"))  # of a model that writes it
                yield piece
                if self.messages is not messages or not self.sequences.is_open:  # the caller went on meanwhile
                    return
        except BaseException as error:
            if isinstance(error, NotFinite):
                error = self.explained(wanted)
            if isinstance(error, Exception) or not said:
                self.messages, self.images = before
            raise error

    def texts(self, wanted: list[int]) -> Iterator[str]:
        """Compute what is new of `wanted`, ids and keys; yields the answer so far, longer each time."""
        shared = min(common_prefix(self.held, wanted), len(wanted) - 1)  # the last one's logits are needed
        limit = min(self.config.max_new_tokens, self.context_length - len(wanted))
        self.held, self.reused = wanted[:shared], shared
        self.sequences.cache.set_counts([shared])
        logits = self.sequences.extend(self.embed(wanted[shared:])[None], [len(wanted) - shared])
        new: list[int] = []
        done = said = ""
        for ids in self.sequences.tokens(logits, self.config, limit, rows=1):
            self.held = [*wanted, *new]
            self.computed = len(self.held) - shared
            new.append(int(ids))
            self.answered = len(new)
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            done = self.decoding.cut(text)
            if len(done) < len(text.strip()):  # the template's stop, where that is no single token
                break
            if len(done) > len(said) and not is_unfinished(text, self.decoding.stop):
                yield (said := done)
        if len(done) > len(said):
            yield done

    def explained(self, wanted: list[int]) -> NotFinite:
        """Explain why `wanted` has no answer, and empty the cache, which holds what is not finite."""
        self.held = []
        self.sequences.cache.clear()
        config = self.model.config
        pixels = [process_images([shown.image], self.image_processor, config)[0] for shown in self.images]
        return explain(self.model, [self.embed(wanted)], pixels)

    @torch.inference_mode()
    def embed(self, keys: list[int]) -> Tensor:
        """Look up the embeddings of ids and keys, (T, C); of the first image, perhaps its last tokens only."""
        embeds = self.sequences.runner.embed([max(0, key) for key in keys])
        ids = torch.tensor(keys, device=embeds.device)
        for image in self.images:
            if count := keys.count(image.key):
                embeds[ids == image.key] = image.tokens[-count:].to(embeds)
        return embeds


def is_unfinished(text: str, stop: str) -> bool:
    """Tell whether a text ends with half a character, or with what may become the stop."""
    return text.endswith(("\ufffd", *(stop[:i] for i in range(1, len(stop)))))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the items that both begin with."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
