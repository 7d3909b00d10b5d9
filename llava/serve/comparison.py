"""One picture, two conversations about it: with all its tokens, and with few. For several visitors, on one model.

Knows no web page: `llava.serve.demo` draws what is here.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from llava.inference.budget import require_possible
from llava.inference.chat import ChatSession
from llava.inference.decoding import Decoding
from llava.mm_utils import process_images
from llava.model.kv_cache import cache_bytes
from llava.serve.timing import Cost, TimedAnswer
from llava.visualize import KEPT, Patch, View, make_view, patch_at
from llava.visualize.crops import crops_of, meaning_of, squares_of
from visionzip_patch import VisionZipConfig
from visionzip_patch.reducer import VisionZip
from visionzip_patch.selectors.handpicked import hand_picked

LONGEST_QUESTION = 4000  # letters
ENDED = "This conversation has ended: the page was left, or was idle while others came. Reload it."
SIDE = 560  # pixels of a crop as it is shown


class EncodedImage(NamedTuple):
    """A picture, and what the tower has made of it so far: every selection begins here."""

    image: Image.Image
    before: Tensor  # (B, L, C), input of the layer that is read
    after: Tensor  # (B, L, C), its output
    squares: list[Image.Image]  # the crops, to be shown
    cols: int  # tiles in a row


class ManualSelection(NamedTuple):
    """Patches chosen by hand."""

    kept: frozenset[Patch] = frozenset()
    released: frozenset[Patch] = frozenset()  # let go: the last ones that a crop is filled up with

    def keep(self, patch: Patch) -> "ManualSelection":
        return ManualSelection(self.kept | {patch}, self.released - {patch})

    def release(self, patch: Patch) -> "ManualSelection":
        return ManualSelection(self.kept - {patch}, self.released | {patch})


class Answer(NamedTuple):
    """What one side says, and what that took."""

    text: str
    cost: Cost
    cache_bytes: int  # keys and values of this side's conversation so far
    peak_bytes: int | None  # GPU memory at its fullest, weights and other conversations included; None without a GPU


class Turn(NamedTuple):
    """A question and what both sides answer; None is to come."""

    question: str
    by_hand: bool  # whether somebody chose the few tokens, not VisionZip
    full: Answer | None = None
    few: Answer | None = None


class ComparisonServer:
    """A model, and who is talking with it.

    Args:
        tokenizer, model, image_processor: from `load_pretrained_model`. A budget that the model carries is taken off
            it: each question sets its own.
        decoding: template, by default the checkpoint's, sampling, longest answer.
        budget: what visitors begin with, dominant and contextual tokens of a crop; and how tokens are merged.
        suffix: a line put under every question.
        visitors: at most so many at once, each may hold two caches; one more, and who has been idle longest must go.

    Raises:
        ValueError: the vision tower gives fewer tokens, or the model cannot chat.
    """

    def __init__(
        self,
        tokenizer,
        model,
        image_processor,
        decoding: Decoding | None = None,
        *,
        budget: VisionZipConfig,
        suffix: str = "",
        visitors: int,
    ):
        self.tokenizer, self.model, self.image_processor = tokenizer, model, image_processor
        self.decoding, self.budget, self.suffix = decoding or Decoding(), budget, suffix
        self.tower = model.get_vision_tower()
        self.tower.reducer = None
        require_possible(budget, model.config, self.tower)
        self.lock = threading.RLock()  # the model serves one caller at a time; a comparison's lock is taken before it
        self.visitors: OrderedDict[str, Comparison] = OrderedDict()  # who has been idle longest comes first
        self.most_visitors = visitors

    @property
    def most_tokens(self) -> int:
        """Tokens that the tower makes of a crop, CLS included."""
        return self.tower.num_patches + self.tower.has_cls

    def enter(self, visitor: str) -> "Comparison":
        """Begin for a visitor, in place of what they had. Raises ValueError if all others are waiting for answers."""
        self.leave(visitor)
        with self.lock:
            if len(self.visitors) >= self.most_visitors:
                idle = next((name for name, comparison in self.visitors.items() if not comparison.is_busy), None)
                if idle is None:
                    raise ValueError(
                        f"{len(self.visitors)} conversations are being answered, and no more than {self.most_visitors} "
                        f"are kept. Reload this page in a moment."
                    )
                self.leave(idle)
            self.visitors[visitor] = Comparison(self)
            return self.visitors[visitor]

    def find(self, visitor: str) -> "Comparison":
        """What `enter` began. Raises ValueError if it has been closed."""
        with self.lock:
            if visitor not in self.visitors:
                raise ValueError(ENDED)
            self.visitors.move_to_end(visitor)
            return self.visitors[visitor]

    def leave(self, visitor: str) -> None:
        """Free what a visitor has."""
        with self.lock:
            if comparison := self.visitors.pop(visitor, None):
                comparison.close()

    def open_session(self) -> ChatSession:
        with self.lock:
            return ChatSession(self.model, self.tokenizer, self.image_processor, self.decoding)

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> EncodedImage:
        with self.lock:
            pixels = crops_of(process_images([image], self.image_processor, self.model.config))
            states = self.tower.hidden_states(pixels)
        return EncodedImage(image, *states, *squares_of(self.model, self.image_processor, image, SIDE))

    @contextmanager
    def reducing(self, reducer: VisionZip | None) -> Iterator[None]:
        """Pictures that are encoded in this block have the tokens that `reducer` leaves; None leaves all."""
        self.tower.reducer = reducer
        try:
            yield
        finally:
            self.tower.reducer = None


class Comparison:
    """What one visitor looks at and talks about. Requests may come at the same time: each is done whole, in turn.

    Attributes:
        turns: so far; the last may be in the making.
        dominant, contextual: the budget of a crop.
        manual: patches chosen by hand; None: VisionZip chooses.
        is_busy: whether an answer is being written.
        view: the picture with the fate of each patch; None until there is one.
    """

    def __init__(self, server: ComparisonServer):
        self.server = server
        self.dominant, self.contextual = server.budget.per_crop(1, server.most_tokens)
        self.lock = threading.RLock()
        self.manual: ManualSelection | None = None
        self.encoded: EncodedImage | None = None
        self.view: View | None = None
        self.sessions: tuple[ChatSession, ...] = ()  # with all tokens, with few; opened with the first question
        self.turns: list[Turn] = []
        self.is_busy = self.is_stopped = self.is_closed = False

    def show(self, image: Image.Image) -> None:
        """Begin anew with another picture.

        Raises:
            ValueError: it cannot be prepared, or an answer is being written.
        """
        with self.lock:
            self.require_idle()
            encoded = self.server.encode(image)
            view = self.view_by(self.reducer_of(self.dominant, self.contextual, None), encoded)
            self.begin_anew()
            self.encoded, self.view, self.manual = encoded, view, None

    def set_budget(self, dominant: int, contextual: int) -> None:
        """Another number of dominant tokens is VisionZip's to fill; that of contextual ones leaves patches by hand.

        Raises:
            ValueError: more than the tower gives; the budget stays as it was.
        """
        with self.lock:
            self.choose(dominant, contextual, self.manual if dominant == self.dominant else None)

    def pick(self, x: float, y: float) -> None:
        """Keep the patch at a point of the view's picture, or let go of it; outside of patches nothing happens.

        All crops keep equally many, as many as were chosen in one: in the others VisionZip adds what it would keep
        next, and what was let go comes last.
        """
        with self.lock:
            if self.view and (patch := patch_at(self.view, x, y)):
                shown = kept_patches(self.view)
                manual = ManualSelection(shown) if self.manual is None else self.manual
                manual = manual.release(patch) if patch in shown else manual.keep(patch)
                self.choose(self.dominant, self.contextual, manual)

    def clear(self) -> None:
        """Let go of all patches, to choose by hand. Raises ValueError if there is no picture."""
        with self.lock:
            self.require_picture()
            self.choose(self.dominant, self.contextual, ManualSelection())

    def let_visionzip_choose(self) -> None:
        """Go back to VisionZip's choice."""
        with self.lock:
            self.choose(self.dominant, self.contextual, None)

    def choose(self, dominant: int, contextual: int, manual: ManualSelection | None) -> None:
        reducer = self.reducer_of(dominant, contextual, manual)
        if self.encoded:
            self.view = self.view_by(reducer, self.encoded)
        self.dominant, self.contextual, self.manual = dominant, contextual, manual

    def reducer_of(self, dominant: int, contextual: int, manual: ManualSelection | None) -> VisionZip:
        """What makes the tokens fewer. Raises ValueError if it would have to make them more."""
        tower, usual = self.server.tower, self.server.budget
        if manual is None:
            config = replace(usual, dominant=dominant, contextual=contextual, tokens_per_image=None)
            return VisionZip(config, tower)
        kept, released = (
            [[patch.patch for patch in part if patch.crop == crop] for crop in range(len(self.encoded.before))]
            for part in manual
        )
        return hand_picked(kept, contextual, tower, usual.merge, released)

    @torch.inference_mode()
    def view_by(self, reducer: VisionZip, encoded: EncodedImage) -> View:
        tower = self.server.tower
        with self.server.lock:
            evidence = tower.evidence(encoded.before, encoded.after)
            scores, selection = evidence.saliency, reducer.select(evidence, crops=len(encoded.before))
        return make_view(
            encoded.squares, scores, selection, has_cls=tower.has_cls, meaning=meaning_of(tower), cols=encoded.cols
        )

    def ask(self, question: str) -> Iterator[None]:
        """Have both sides answer, one after the other so that each is timed alone; `turns` grows with every step.

        A turn that is not taken to its end, whatever the reason, is taken back from both. `stop` ends an answer.

        Raises:
            ValueError: no question, no picture, one too long, or an answer is being written already.
        """
        question = question.strip()
        if not question:
            raise ValueError("There is no question yet: write one.")
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"The question has {len(question)} letters; at most {LONGEST_QUESTION} are taken.")
        text = "\n".join(filter(None, [question, self.server.suffix]))
        with self.lock, self.server.lock:  # the server closes no conversation in between
            self.require_picture()
            self.require_idle()
            if self.is_closed:
                raise ValueError(ENDED)
            reducer, taken = self.reducer_of(self.dominant, self.contextual, self.manual), len(self.turns)
            self.sessions = self.sessions or (self.server.open_session(), self.server.open_session())
            turn = Turn(question, by_hand=self.manual is not None)
            self.is_busy = True
        try:
            for session, side, way in zip(self.sessions, ("full", "few"), (None, reducer), strict=True):
                for answer in self.answers(session, way, text):
                    turn = turn._replace(**{side: answer})
                    self.turns = [*self.turns[:taken], turn]
                    yield
        except BaseException:
            self.turns = self.turns[:taken]
            for session in self.sessions:
                if len(session.messages) > 2 * taken:
                    session.undo()
            raise
        finally:
            self.is_busy = False

    def answers(self, session: ChatSession, reducer: VisionZip | None, text: str) -> Iterator[Answer]:
        """The answer of one side so far, longer each time; the last one is whole, or was stopped.

        Its first words come whenever it is stopped: without them there would be no turn to go on from.
        """
        lock, device, said, self.is_stopped = self.server.lock, self.server.model.device, "", False
        is_on_gpu = device.type == "cuda"
        with lock, self.server.reducing(reducer):
            if is_on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            stream = TimedAnswer(session, text, [] if session.images else [self.encoded.image])
        with closing(stream):
            while True:
                with lock:
                    piece = next(stream, "")  # which no piece is
                if self.is_closed:
                    raise ValueError("This conversation was closed.")
                said += piece
                held = cache_bytes(session.model.get_model(), 1, len(session.held))
                yield Answer(said, stream.cost(), held, torch.cuda.max_memory_allocated(device) if is_on_gpu else None)
                if not piece or self.is_stopped:
                    return

    def stop(self) -> None:
        """End the answer that is being written; what was said stays."""
        self.is_stopped = True

    def undo(self) -> None:
        """Take back the last question. Raises ValueError if there is none, or an answer is being written."""
        with self.lock:
            self.require_idle()
            if not self.turns:
                raise ValueError("There is no question to take back.")
            self.turns = self.turns[:-1]
            for session in self.sessions:
                session.undo()

    def begin_anew(self) -> None:
        """Forget what was said. Raises ValueError if an answer is being written."""
        with self.lock:
            self.require_idle()
            self.turns = []
            for session in self.sessions:
                session.reset()

    def close(self) -> None:
        """Free the caches; an answer that is being written ends. Called with the server's lock."""
        self.is_closed = True
        for session in self.sessions:
            session.close()

    def require_idle(self) -> None:
        if self.is_busy:
            raise ValueError("An answer is being written: wait for its end, or stop it.")

    def require_picture(self) -> None:
        if self.encoded is None:
            raise ValueError("There is no picture yet: pick or upload one.")


def kept_patches(view: View) -> frozenset[Patch]:
    return frozenset(
        Patch(i, patch)
        for i, crop in enumerate(view.crops)
        for patch, token in enumerate(crop.token.tolist())
        if token == KEPT
    )
