"""Chat in a terminal: pictures, questions, commands, and what each turn took. The work of `llava.serve.cli`."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from llava.inference.budget import budget_name, choose_budget, require_possible, set_budget
from llava.inference.chat import ChatSession
from llava.inference.embedded import EMBEDDED_PICTURE, playground
from llava.mm_utils import fetch_image, upright
from llava.serve.loading import read_options
from llava.serve.timing import AnswerCost, TimedAnswer
from llava.utils.cli import QUESTIONS_REFUSED
from llava.utils.environment import describe_device
from llava.utils.files import UNSEALED, is_sealed, read_bytes, seal, write_bytes
from visionzip_patch import VisionZipConfig

HELP = """\
/image PATH    show a picture with the next question: a file or a URL
/budget        say what a picture costs now, and how to change it
/budget D C    keep D tokens of each crop of a picture and merge the rest into C, as in /budget 54 10
/budget N      N tokens for each picture
/full          all tokens
/new           begin anew with the same pictures; the same question at two budgets, say
/clear         begin anew without pictures
/undo          take back the last question
/save FILE     write the conversation to FILE, .md or .json
/help, /quit   this list; the end, as Ctrl-D
Ctrl-C stops an answer."""
BUDGET_FORMS = (
    "Write /budget D C to keep D tokens of each crop and merge the rest into C, as in /budget 54 10; /budget N for N "
    "tokens of each picture; /full for all tokens."
)


class Picture(NamedTuple):
    """A picture, and the file or URL it comes from."""

    name: str
    image: Image.Image


class Turn(NamedTuple):
    """A question, its answer, and what it took."""

    question: str
    pictures: list[Picture]  # those that came with it
    answer: str
    stopped: bool  # by the user
    budget: str
    cost: AnswerCost

    def effort(self) -> str:
        """Describe in words what the turn took."""
        cost = self.cost
        pace = "" if cost.ms_per_token is None else f", then {cost.ms_per_token:.1f} ms per token"
        return (
            f"{cost.visual_tokens} visual tokens ({self.budget}); {cost.computed} tokens computed, {cost.reused} "
            f"reused; first words after {cost.first_ms:.0f} ms{pace}{'; stopped' * self.stopped}"
        )

    def row(self) -> dict:
        """Return the turn as an object of JSON."""
        row = {**self._asdict(), "pictures": [picture.name for picture in self.pictures]}
        cost = row.pop("cost")
        return {**row, **cost._asdict()}


class Chat:
    """A conversation led line by line.

    Args:
        session: the conversation as the model has it.
        name: of the model, for people.
        pictures: to be shown with the first question.
        suffix: a line added to every question.
        knows_one_picture: the model was trained with one picture per conversation.
    """

    def __init__(
        self,
        session: ChatSession,
        name: str,
        pictures: Sequence[Picture] = (),
        suffix: str = "",
        *,
        knows_one_picture: bool = False,
    ):
        self.session, self.name, self.suffix, self.knows_one_picture = session, name, suffix, knows_one_picture
        self.turns: list[Turn] = []
        self.waiting = list(pictures)  # for the next question

    def take(self, line: str) -> None:
        """Answer a question or obey a command. Raises ValueError if that is impossible; the chat is as it was."""
        word, *rest = line.split(maxsplit=1) or [""]
        if not word.startswith("/"):
            if word:
                self.ask(line)
            return
        commands = COMMANDS_WITH_ARGUMENT if rest else COMMANDS
        if word not in commands:
            raise ValueError(f"{line!r} is no command: /help shows how they are written.")
        commands[word](self, *(argument.strip() for argument in rest))

    def show(self, name: str) -> None:
        """Add a picture of a file or URL to the next question."""
        self.waiting.append(load_picture(name.strip("'\"")))
        print(describe(self.waiting))
        self.hint()

    def print_budget(self) -> None:
        print(f"Now: {self.session.budget or 'all tokens'}. {BUDGET_FORMS}")

    def print_help(self) -> None:
        print(HELP)

    def use_budget(self, counts: str) -> None:
        """Change the budget to what was typed, such as "54 10"."""
        self.set_budget(self.read_budget(counts.split()))

    def use_all_tokens(self) -> None:
        self.set_budget(None)

    def begin_with_same_pictures(self) -> None:
        self.begin_anew([picture for turn in self.turns for picture in turn.pictures] + self.waiting)

    def begin_without_pictures(self) -> None:
        self.begin_anew([])

    def ask(self, question: str) -> None:
        """Print the answer as it comes, and what it took. An interruption stops it; its part so far stays."""
        session, before, stopped = self.session, self.session.messages, False
        text = "\n".join(filter(None, [question, self.suffix]))
        answer = TimedAnswer(session, text, [picture.image for picture in self.waiting])
        try:
            for piece in answer:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if session.messages is before:  # nothing was said yet
                raise
            stopped = True
        turn = Turn(
            question=question,
            pictures=self.waiting,
            answer=session.messages[-1][1],
            stopped=stopped,
            budget=budget_name(session.budget),
            cost=answer.cost(),
        )
        self.turns.append(turn)
        self.waiting = []
        print(f"\n[{turn.effort()}]")

    def set_budget(self, budget: VisionZipConfig | None) -> None:
        """Change the budget; None for all tokens. Raises ValueError if the tower has fewer tokens."""
        model = self.session.model
        if budget:
            require_possible(budget, model.config, model.get_vision_tower())
        set_budget(model, budget)
        print(f"From now on: {budget or 'all tokens'}.", end=" " if self.session.images else "\n")
        if self.session.images:
            print("The pictures so far are encoded anew; what was said stays, /new forgets it.")

    def hint(self) -> None:
        """Warn if a model that was trained with single pictures is about to see several."""
        if self.knows_one_picture and sum(len(turn.pictures) for turn in self.turns) + len(self.waiting) > 1:
            print(
                f"{self.name} was trained with one picture per conversation: of several it sees little. To ask about "
                f"another one alone: /clear, then /image PATH."
            )

    def read_budget(self, counts: Sequence[str]) -> VisionZipConfig:
        """Read a budget: 54 10 for dominant and contextual tokens of a crop, 160 for tokens of a picture.

        The rest stays as it is. Raises ValueError for anything else.
        """
        if len(counts) > 2 or not all(count.isascii() and count.isdecimal() for count in counts):
            raise ValueError(f"/budget {' '.join(counts)} is no budget. {BUDGET_FORMS}")
        numbers = [int(count) for count in counts]
        names = ("dominant", "contextual") if len(numbers) == 2 else ("tokens_per_image",)
        nothing = dict.fromkeys(("dominant", "contextual", "tokens_per_image"))
        asked = {**nothing, **dict(zip(names, numbers, strict=True))}
        return replace(self.session.budget, **asked) if self.session.budget else VisionZipConfig(**asked)

    def undo(self) -> None:
        """Take the last question back; its pictures come with the next one. Raises ValueError if there is none."""
        if not self.turns:
            raise ValueError("There is no question to take back.")
        turn = self.turns.pop()
        self.session.undo()
        self.waiting = turn.pictures + self.waiting
        print(f"Taken back: {turn.question}")

    def begin_anew(self, pictures: list[Picture]) -> None:
        """Start another conversation, with pictures for its first question."""
        self.session.reset()
        self.turns, self.waiting = [], pictures
        print(f"A new conversation. {describe(pictures)}")

    def save(self, name: str) -> None:
        """Write the conversation to a file; one that is there is replaced only if it was saved so and not changed.

        Raises:
            ValueError: nothing was said yet, another kind of file is there, or the file cannot be written.
        """
        path = Path(name).expanduser()
        if not self.turns:
            raise ValueError("Nothing was said yet.")
        if path.suffix not in (".md", ".json"):
            raise ValueError(f"{path}: write a conversation to a name that ends in .md or .json.")
        try:
            if path.exists() and not is_sealed(read_bytes(path)):
                raise ValueError(
                    f"{path} is there, and is no conversation saved here, or was changed since: it stays as it is. "
                    f"Choose another name."
                )
            write_bytes(path, seal(self.markdown(path.parent) if path.suffix == ".md" else self.json()))
        except OSError as error:
            raise ValueError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from None
        print(f"Written: {path}")

    def json(self) -> str:
        """Write the conversation as JSON."""
        content = {**self.setting(), "turns": [turn.row() for turn in self.turns], "saved": UNSEALED}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def setting(self) -> dict:
        """Return what the answers depend on besides the questions."""
        decoding = self.session.decoding
        return {
            "model": self.name,
            "conv_mode": decoding.conv_mode,
            "temperature": decoding.temperature,
            "suffix": self.suffix,
        }

    def markdown(self, folder: Path) -> str:
        """Write the conversation as Markdown, with pictures as links from `folder`."""
        setting = ", ".join(f"{name} {value!r}" for name, value in self.setting().items() if name != "model")
        parts = [f"# A conversation with {self.name}", setting]
        for turn in self.turns:
            parts += [f"![picture](<{link(picture.name, folder)}>)" for picture in turn.pictures]
            parts += [f"**You:** {turn.question}", f"**{self.name}:** {turn.answer}", f"*{turn.effort()}*"]
        parts.append(f"<!-- saved: {UNSEALED} -->")
        return "\n\n".join(parts) + "\n"


COMMANDS: dict[str, Callable[[Chat], None]] = {
    "/budget": Chat.print_budget,
    "/full": Chat.use_all_tokens,
    "/new": Chat.begin_with_same_pictures,
    "/clear": Chat.begin_without_pictures,
    "/undo": Chat.undo,
    "/help": Chat.print_help,
}
COMMANDS_WITH_ARGUMENT: dict[str, Callable[[Chat, str], None]] = {
    "/image": Chat.show,
    "/budget": Chat.use_budget,
    "/save": Chat.save,
}


def talk(args: argparse.Namespace) -> int:
    """Load the model and chat until the lines end; returns the exit status."""
    reconfigure(sys.stdin, errors="replace")  # bytes that are no text
    reconfigure(sys.stdout, errors="replace", line_buffering=True)  # letters the terminal lacks
    options = read_options(args)
    names = args.image_file or [str(playground() / EMBEDDED_PICTURE)] * options.is_embedded
    pictures = [load_picture(name) for name in names]  # before the model, which may have to be fetched
    budget = choose_budget(args, options.config, options.tower, usual=False)
    tokenizer, model, processor = options.load(visionzip=budget, fast=args.fast)
    with ChatSession(model, tokenizer, processor, options.decoding) as session:
        tokens = session.budget or f"all {options.tower.num_patches} tokens per crop"
        settings = f"template {session.decoding.conv_mode}, {tokens}"
        print(f"{options.name} on {describe_device(options.device)}, {settings}. /help for commands.")
        if options.suffix:
            print(f"Under every question: {options.suffix!r} (--suffix '' leaves it out).")
        print(describe(pictures))
        chat = Chat(session, options.name, pictures, options.suffix, knows_one_picture=options.is_embedded)
        chat.hint()
        return lead(chat)


def reconfigure(stream, **settings) -> None:
    """Change how a stream of this process treats text; the stand-in of a test or a notebook stays as it is."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(**settings)


def lead(chat: Chat) -> int:
    """Take lines until they end; errors are printed, and the chat continues. Returns the exit status."""
    is_person, refused = sys.stdin.isatty(), 0
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` its line editing
    for line in lines(is_person):
        try:
            chat.take(line)
        except KeyboardInterrupt:
            if not is_person:
                raise
            print("\nStopped: nothing has changed.")
        except torch.OutOfMemoryError:
            refused += 1
            print("Out of memory. Ask with fewer tokens (/budget), or about fewer pictures (/clear).", file=sys.stderr)
        except ValueError as error:
            refused += 1
            print(error, file=sys.stderr)
    return QUESTIONS_REFUSED if refused and not is_person else 0


def lines(is_person: bool) -> Iterator[str]:
    """Yield what is typed, or comes from a pipe and is echoed, until /quit or the end; Ctrl-C ends a typed chat too."""
    while True:
        try:
            line = input("> " if is_person else "").strip()
        except (EOFError, KeyboardInterrupt) as end:
            if is_person:
                print()
            elif isinstance(end, KeyboardInterrupt):
                raise
            return
        if not is_person:
            print(f"> {line}")
        if line == "/quit":
            return
        yield line


def load_picture(name: str) -> Picture:
    """Load a picture from a file or a http(s) URL. Raises ValueError if there is none that can be used."""
    return Picture(name, upright(fetch_image(name)))


def describe(waiting: Sequence[Picture]) -> str:
    """Say which pictures come with the next question."""
    if not waiting:
        return "The next question comes without a new picture: /image PATH shows one."
    listed = ", ".join(f"{picture.name} ({picture.image.width}×{picture.image.height})" for picture in waiting)
    return f"With the next question: {listed}."


def link(name: str, folder: Path) -> str:
    """Write how a file in `folder` refers to a picture."""
    return name if "://" in name else os.path.relpath(Path(name).expanduser().resolve(), folder.resolve())
