"""A chat in a terminal: pictures, questions, commands, and what each turn took."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from llava.inference.budget import budget_name, choose_budget, require_possible, set_budget
from llava.inference.chat import ChatSession
from llava.inference.embedded import playground
from llava.mm_utils import fetch_image, upright
from llava.serve.loading import read_options
from llava.serve.timing import Cost, TimedAnswer
from llava.utils.cli import QUESTIONS_REFUSED
from llava.utils.environment import describe_device
from llava.utils.files import UNSEALED, is_sealed, read_bytes, seal, write_bytes
from visionzip_patch import VisionZipConfig

EMBEDDED_PICTURE = "data/eval/signs/train_images/sign000000000.png"  # relative to playground/

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
    """A picture and where it comes from."""

    name: str
    image: Image.Image


class Turn(NamedTuple):
    """A question, its answer, and what it took."""

    question: str
    pictures: list[Picture]  # those that came with it
    answer: str
    stopped: bool  # by the user
    budget: str
    cost: Cost

    def effort(self) -> str:
        """What it took, in words."""
        cost = self.cost
        pace = "" if cost.ms_per_token is None else f", then {cost.ms_per_token:.1f} ms per token"
        return (
            f"{cost.visual_tokens} visual tokens ({self.budget}); {cost.computed} tokens computed, {cost.reused} "
            f"reused; first words after {cost.first_ms:.0f} ms{pace}{'; stopped' * self.stopped}"
        )

    def row(self) -> dict:
        """For a JSON file."""
        row = {**self._asdict(), "pictures": [picture.name for picture in self.pictures]}
        cost = row.pop("cost")
        return {**row, **cost._asdict()}


class Chat:
    """A conversation that a person leads, line by line.

    Args:
        session: the conversation as the model has it.
        name: what to call the model.
        pictures: to be shown with the first question.
        suffix: a line put under every question.
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
        """Answer a question or obey a command. Raises ValueError if that cannot be done; the chat is as it was."""
        match line.split():
            case []:
                pass
            case ["/image", _, *_]:
                self.waiting.append(load_picture(line.split(maxsplit=1)[1].strip("'\"")))
                print(describe(self.waiting))
                self.hint()
            case ["/budget"]:
                print(f"Now: {self.session.budget or 'all tokens'}. {BUDGET_FORMS}")
            case ["/budget", *counts]:
                self.set_budget(self.read_budget(counts))
            case ["/full"]:
                self.set_budget(None)
            case ["/new"]:
                self.begin_anew([picture for turn in self.turns for picture in turn.pictures] + self.waiting)
            case ["/clear"]:
                self.begin_anew([])
            case ["/undo"]:
                self.undo()
            case ["/save", _, *_]:
                self.save(Path(line.split(maxsplit=1)[1]).expanduser())
            case ["/help"]:
                print(HELP)
            case [word, *_] if word.startswith("/"):
                raise ValueError(f"{line!r} is no command: /help shows how they are written.")
            case _:
                self.ask(line)

    def ask(self, question: str) -> None:
        """Print the answer as it comes, and what it took. An interruption stops it; what was said until then stays."""
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
        model = self.session.model
        if budget:
            require_possible(budget, model.config, model.get_vision_tower())
        set_budget(model, budget)
        print(f"From now on: {budget or 'all tokens'}.", end=" " if self.session.images else "\n")
        if self.session.images:
            print("The pictures so far are encoded anew; what was said stays, /new forgets it.")

    def hint(self) -> None:
        """Say that a model which has learnt from single pictures is about to see several, if so it is."""
        if self.knows_one_picture and sum(len(turn.pictures) for turn in self.turns) + len(self.waiting) > 1:
            print(
                f"{self.name} was trained with one picture per conversation: of several it tells little. To ask about "
                f"another one alone: /clear, then /image PATH."
            )

    def read_budget(self, counts: Sequence[str]) -> VisionZipConfig:
        """54 10 are dominant and contextual tokens of a crop, 160 alone those of a picture; the rest stays as it is."""
        if len(counts) > 2 or not all(count.isascii() and count.isdecimal() for count in counts):
            raise ValueError(f"/budget {' '.join(counts)} is no budget. {BUDGET_FORMS}")
        numbers = [int(count) for count in counts]
        names = ("dominant", "contextual") if len(numbers) == 2 else ("tokens_per_image",)
        nothing = dict.fromkeys(("dominant", "contextual", "tokens_per_image"))
        asked = {**nothing, **dict(zip(names, numbers, strict=True))}
        return replace(self.session.budget, **asked) if self.session.budget else VisionZipConfig(**asked)

    def undo(self) -> None:
        if not self.turns:
            raise ValueError("There is no question to take back.")
        turn = self.turns.pop()
        self.session.undo()
        self.waiting = turn.pictures + self.waiting
        print(f"Taken back: {turn.question}")

    def begin_anew(self, pictures: list[Picture]) -> None:
        self.session.reset()
        self.turns, self.waiting = [], pictures
        print(f"A new conversation. {describe(pictures)}")

    def save(self, path: Path) -> None:
        """Write the conversation, over nothing but one that was saved so and is as it was then."""
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
        """The conversation as JSON."""
        content = {**self.setting(), "turns": [turn.row() for turn in self.turns], "saved": UNSEALED}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def setting(self) -> dict:
        decoding = self.session.decoding
        return {
            "model": self.name,
            "conv_mode": decoding.conv_mode,
            "temperature": decoding.temperature,
            "suffix": self.suffix,
        }

    def markdown(self, folder: Path) -> str:
        """The conversation, with pictures as links from `folder`."""
        setting = ", ".join(f"{name} {value!r}" for name, value in self.setting().items() if name != "model")
        parts = [f"# A conversation with {self.name}", setting]
        for turn in self.turns:
            parts += [f"![picture](<{link(picture.name, folder)}>)" for picture in turn.pictures]
            parts += [f"**You:** {turn.question}", f"**{self.name}:** {turn.answer}", f"*{turn.effort()}*"]
        parts.append(f"<!-- saved: {UNSEALED} -->")
        return "\n\n".join(parts) + "\n"


def talk(args: argparse.Namespace) -> int:
    """Do what `llava.serve.cli` was asked for; returns the exit status."""
    reconfigure(sys.stdin, errors="replace")  # bytes that are no text
    reconfigure(sys.stdout, errors="replace", line_buffering=True)  # letters the terminal lacks; errors in their place
    asked = read_options(args)
    names = args.image_file or [str(playground() / EMBEDDED_PICTURE)] * asked.is_embedded
    pictures = [load_picture(name) for name in names]  # before the model, which may have to be fetched
    budget = choose_budget(args, asked.config, asked.tower, usual=False)
    tokenizer, model, processor = asked.load(visionzip=budget, fast=args.fast)
    with ChatSession(model, tokenizer, processor, asked.decoding) as session:
        tokens = session.budget or f"all {asked.tower.num_patches} tokens per crop"
        told = f"template {session.decoding.conv_mode}, {tokens}"
        print(f"{asked.name} on {describe_device(asked.device)}, {told}. /help for commands.")
        if asked.suffix:
            print(f"Under every question: {asked.suffix!r} (--suffix '' leaves it out).")
        print(describe(pictures))
        chat = Chat(session, asked.name, pictures, asked.suffix, knows_one_picture=asked.is_embedded)
        chat.hint()
        return lead(chat)


def reconfigure(stream, **settings) -> None:
    """Change how a stream of this process treats text; one that a test or a notebook has put there stays as it is."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(**settings)


def lead(chat: Chat) -> int:
    """Take lines until they end; errors are said, and the chat goes on. Returns the exit status."""
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
    """What is typed, or comes from a pipe and is shown, until /quit or the end; for a person Ctrl-C is an end too."""
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
    """A picture of a file or a http(s) URL. Raises ValueError if there is none that can be used."""
    return Picture(name, upright(fetch_image(name)))


def describe(waiting: Sequence[Picture]) -> str:
    if not waiting:
        return "The next question comes without a new picture: /image PATH shows one."
    listed = ", ".join(f"{picture.name} ({picture.image.width}×{picture.image.height})" for picture in waiting)
    return f"With the next question: {listed}."


def link(name: str, folder: Path) -> str:
    """How a file in `folder` names a picture."""
    return name if "://" in name else os.path.relpath(Path(name).expanduser().resolve(), folder.resolve())
