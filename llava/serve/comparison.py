"""Hold two conversations about one picture, with all its tokens and with few, for several visitors on one model.

There is no web page here: `llava.serve.web` shows what is in this module.
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
from llava.serve.timing import AnswerCost, TimedAnswer
from llava.visualize import KEPT, Patch, View, make_view, patch_at
from llava.visualize.crops import crops_of, meaning_of, squares_of
from visionzip_patch import VisionZipConfig
from visionzip_patch.reducer import VisionZip
from visionzip_patch.selectors.handpicked import hand_picked

LONGEST_QUESTION = 4000  # letters
ENDED = "This conversation has ended: the page was left, or was idle while others came. Reload it."
SIDE = 560  # pixels of a crop as it is shown


class EncodedImage(NamedTuple):
    """A picture and the hidden states that every selection of its tokens starts from."""

    image: Image.Image
    before: Tensor  # (B, L, C), input of the layer that is read
    after: Tensor  # (B, L, C), its output
    squares: list[Image.Image]  # the crops as they are shown
    cols: int  # tiles in a row


class ManualSelection(NamedTuple):
    """Patches chosen by hand."""

    kept: frozenset[Patch] = frozenset()
    released: frozenset[Patch] = frozenset()  # given up: the last ones that a crop is filled up with

    def keep(self, patch: Patch) -> "ManualSelection":
        """Return the selection with `patch`."""
        return ManualSelection(self.kept | {patch}, self.released - {patch})

    def release(self, patch: Patch) -> "ManualSelection":
        """Return the selection without `patch`."""
        return ManualSelection(self.kept - {patch}, self.released | {patch})


class Answer(NamedTuple):
    """The answer of one side, and what it took."""

    text: str
    cost: AnswerCost
    cache_bytes: int  # keys and values of this side's conversation so far
    peak_bytes: int | None  # the most GPU memory in use, weights and other conversations included; None without a GPU


class Turn(NamedTuple):
    """A question and the answers of both sides; None for one that is to come."""

    question: str
    by_hand: bool  # whether the visitor chose the few tokens, not VisionZip
    full: Answer | None = None
    few: Answer | None = None


class ComparisonServer:
    """A model, and the comparisons of the visitors who talk with it.

    Args:
        tokenizer, model, image_processor: from `load_pretrained_model`. A budget that the model carries is
            removed: each question sets its own.
        decoding: template, by default the checkpoint's, sampling, longest answer.
        budget: what visitors start with, dominant and contextual tokens of a crop; and how tokens are merged.
        suffix: a line put under every question.
        visitors: how many at once, at most; each may hold two caches. One more closes the comparison idle longest.

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
        """Start a comparison for a visitor, in place of an earlier one. Raises ValueError if all others are busy."""
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
        """Return the comparison that `enter` started. Raises ValueError if it has been closed."""
        with self.lock:
            if visitor not in self.visitors:
                raise ValueError(ENDED)
            self.visitors.move_to_end(visitor)
            return self.visitors[visitor]

    def leave(self, visitor: str) -> None:
        """Close the comparison of a visitor."""
        with self.lock:
            if comparison := self.visitors.pop(visitor, None):
                comparison.close()

    def open_session(self) -> ChatSession:
        """Open a conversation with the model."""
        with self.lock:
            return ChatSession(self.model, self.tokenizer, self.image_processor, self.decoding)

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> EncodedImage:
        """Run a picture through the tower. Raises ValueError if it cannot be prepared."""
        with self.lock:
            pixels = crops_of(process_images([image], self.image_processor, self.model.config))
            states = self.tower.hidden_states(pixels)
        return EncodedImage(image, *states, *squares_of(self.model, self.image_processor, image, SIDE))

    @contextmanager
    def reducing(self, reducer: VisionZip | None) -> Iterator[None]:
        """Have pictures reduced by `reducer` that are encoded in this block; None keeps all tokens."""
        self.tower.reducer = reducer
        try:
            yield
        finally:
            self.tower.reducer = None


class Comparison:
    """The picture, selection and two conversations of one visitor. Requests may come at once: each is done in turn.

    Attributes:
        turns: so far; the last may be unfinished.
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
        """Start again with another picture.

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
        """Set the budget of a crop; with another number of dominant tokens VisionZip chooses again.

        Raises:
            ValueError: more than the tower gives; the budget stays as it was.
        """
        with self.lock:
            self.choose(dominant, contextual, self.manual if dominant == self.dominant else None)

    def pick(self, x: float, y: float) -> None:
        """Select the patch at a point of the view's picture, or release it; outside of patches nothing happens.

        All crops keep equally many, as many as are selected in the fullest: in the others VisionZip adds those that it
        would keep next, released ones last.
        """
        with self.lock:
            if self.view and (patch := patch_at(self.view, x, y)):
                shown = kept_patches(self.view)
                manual = ManualSelection(shown) if self.manual is None else self.manual
                manual = manual.release(patch) if patch in shown else manual.keep(patch)
                self.choose(self.dominant, self.contextual, manual)

    def clear(self) -> None:
        """Release all patches, to select by hand. Raises ValueError if there is no picture."""
        with self.lock:
            self.require_picture()
            self.choose(self.dominant, self.contextual, ManualSelection())

    def let_visionzip_choose(self) -> None:
        """Return to VisionZip's selection."""
        with self.lock:
            self.choose(self.dominant, self.contextual, None)

    def choose(self, dominant: int, contextual: int, manual: ManualSelection | None) -> None:
        """Set budget and selection, and draw the view again. Raises ValueError if they are not possible."""
        reducer = self.reducer_of(dominant, contextual, manual)
        if self.encoded:
            self.view = self.view_by(reducer, self.encoded)
        self.dominant, self.contextual, self.manual = dominant, contextual, manual

    def reducer_of(self, dominant: int, contextual: int, manual: ManualSelection | None) -> VisionZip:
        """Make the reducer for a budget and a selection. Raises ValueError if the tower has fewer tokens."""
        tower, usual = self.server.tower, self.server.budget
        if manual is None or self.encoded is None:
            config = replace(usual, dominant=dominant, contextual=contextual, tokens_per_image=None)
            return VisionZip(config, tower)
        kept, released = (
            [[patch.patch for patch in part if patch.crop == crop] for crop in range(len(self.encoded.before))]
            for part in manual
        )
        return hand_picked(kept, contextual, tower, usual.merge, released)

    @torch.inference_mode()
    def view_by(self, reducer: VisionZip, encoded: EncodedImage) -> View:
        """Make the view of a picture with the selection of `reducer`."""
        tower = self.server.tower
        with self.server.lock:
            evidence = tower.evidence(encoded.before, encoded.after)
            scores, selection = evidence.saliency, reducer.select(evidence, crops=len(encoded.before))
        return make_view(
            encoded.squares, scores, selection, has_cls=tower.has_cls, meaning=meaning_of(tower), cols=encoded.cols
        )

    def ask(self, question: str) -> Iterator[None]:
        """Have both sides answer, one after the other so that each is timed alone; each step extends `turns`.

        A turn that does not reach its end, whatever the reason, is undone on both sides. `stop` ends an answer.

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
            for session, side, reduced in zip(self.sessions, ("full", "few"), (None, reducer), strict=True):
                for answer in self.answers(session, reduced, text):
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
        """Yield the answer of one side so far, longer each time; the last is whole, or was stopped.

        One that is stopped still has its first words: without them there would be no turn to continue from.
        """
        assert self.encoded, "`ask` requires a picture"
        lock, device, said, self.is_stopped = self.server.lock, self.server.model.device, "", False
        is_on_gpu = device.type == "cuda"
        with lock, self.server.reducing(reducer):
            if is_on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            stream = TimedAnswer(session, text, [] if session.images else [self.encoded.image])
        with closing(stream):
            while True:
                with lock:
                    piece = next(stream, "")  # no piece is empty
                if self.is_closed:
                    raise ValueError("This conversation was closed.")
                said += piece
                held = cache_bytes(session.model.get_model(), 1, len(session.held))
                yield Answer(said, stream.cost(), held, torch.cuda.max_memory_allocated(device) if is_on_gpu else None)
                if not piece or self.is_stopped:
                    return

    def stop(self) -> None:
        """End the answer that is being written; the part that was said stays."""
        self.is_stopped = True

    def undo(self) -> None:
        """Remove the last question and its answers. Raises ValueError if there is none, or one is being answered."""
        with self.lock:
            self.require_idle()
            if not self.turns:
                raise ValueError("There is no question to take back.")
            self.turns = self.turns[:-1]
            for session in self.sessions:
                session.undo()

    def begin_anew(self) -> None:
        """Start the conversations again. Raises ValueError if an answer is being written."""
        with self.lock:
            self.require_idle()
            self.turns = []
            for session in self.sessions:
                session.reset()

    def close(self) -> None:
        """Free the caches; an answer that is being written ends. The caller holds the server's lock."""
        self.is_closed = True
        for session in self.sessions:
            session.close()

    def require_idle(self) -> None:
        """Raise ValueError while an answer is being written."""
        if self.is_busy:
            raise ValueError("An answer is being written: wait for its end, or stop it.")

    def require_picture(self) -> None:
        """Raise ValueError if no picture was shown yet."""
        if self.encoded is None:
            raise ValueError("There is no picture yet: pick or upload one.")


def kept_patches(view: View) -> frozenset[Patch]:
    """Return the patches that a view shows as kept."""
    return frozenset(
        Patch(i, patch)
        for i, crop in enumerate(view.crops)
        if crop.token is not None
        for patch, token in enumerate(crop.token.tolist())
        if token == KEPT
    )
