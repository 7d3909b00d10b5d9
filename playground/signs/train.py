"""Train the tiny model of the signs world and write its checkpoint.

    python -m playground.signs.train

It draws its own data. Three stages: `read` teaches the tower characters, words and colours on crowded scenes; `answer`
trains tower, projector and language model together on questions in LLaVA's prompt; `choose` teaches the latter two to
answer questions with choices by a letter. Every batch, dropout and learning rate is a function of the step, so a
resumed run equals an uninterrupted one.
"""

import argparse
import json
import logging
import math
import os
import platform
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.utils.data import DataLoader

from playground.signs.export import LLAVA_FOLDER, export, load_weights, write_json
from playground.signs.lessons import CHOICE, Batch, Lessons, make_batch
from playground.signs.make_textvqa import SEEDS_PER_SET, SETS
from playground.signs.model import SELECT_LAYER, SignReader, drop_tokens
from playground.signs.scenes import HELD_OUT, KINDS
from playground.signs.tokenizer import BEFORE_IMAGE, train_tokenizer

BOS = 1
DEFAULT_OUT = Path(__file__).parents[1] / "checkpoints"
_VALIDATION = HELD_OUT + SETS * SEEDS_PER_SET  # first seed after those of all evaluation sets
_TEST_BATCH = 32  # scenes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One part of the training; weights of the losses as `SignReader` names them."""

    name: str
    steps: int
    rate: float  # peak learning rate
    tower_rate: float  # 0: it is frozen
    first_seed: int
    dense: bool = False
    answer: float = 0.0
    caption: float = 0.0
    patch: float = 0.0
    character: float = 0.0
    drop: float = 0.0  # share of the batches whose visual tokens are thinned out
    choices: float = 0.0  # share of the questions that offer some
    warm_up: int = 200  # steps


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights; the defaults are those of the committed checkpoint."""

    read_steps: int = 6000
    answer_steps: int = 5000
    choose_steps: int = 4000
    batch_size: int = 16  # scenes
    seed: int = 0

    def stages(self) -> tuple[Stage, ...]:
        read = Stage("read", self.read_steps, 1.5e-3, 1.5e-3, 0, dense=True, patch=1.0, character=1.0)
        answer = Stage(
            "answer", self.answer_steps, 1.2e-3, 5e-4, 100_000_000, answer=2.0, caption=0.3, patch=0.3, drop=0.5
        )
        choose = Stage("choose", self.choose_steps, 6e-4, 0.0, 200_000_000, answer=1.0, drop=0.5, choices=0.5)
        return read, answer, choose

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages())


class Trainer:
    """A model, its optimizer and the number of steps done; `fit` goes on from there."""

    def __init__(self, recipe: Recipe, tokenizer_file: Path, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.tokenizer_file = recipe, device, str(tokenizer_file)
        self.tokenizer = SentencePieceProcessor(model_file=self.tokenizer_file)
        self.prefix = torch.tensor([[BOS, *self.tokenizer.encode(BEFORE_IMAGE)]], device=device)
        self.model = SignReader().to(device)
        self.optimizer = self._new_optimizer()
        self.step, self.seconds = 0, 0.0

    def fit(self, until: int) -> Iterator[dict[str, Tensor]]:
        """Train up to step `until` of the whole recipe; yields the losses of each step once it is done."""
        begins = 0
        for stage in self.recipe.stages():
            ends = begins + stage.steps
            if begins <= self.step < min(ends, until):
                yield from self._fit_stage(stage, begins, min(ends, until))
            begins = ends

    def _fit_stage(self, stage: Stage, begins: int, until: int) -> Iterator[dict[str, Tensor]]:
        if self.step == begins:
            self.optimizer = self._new_optimizer()  # moments of another task mislead
        lessons = Lessons(
            self.tokenizer_file, self.recipe.batch_size, stage.first_seed, stage.steps, stage.dense, stage.choices
        )
        loader = DataLoader(
            lessons,
            batch_size=None,
            sampler=range(self.step - begins, until - begins),
            num_workers=1,
            prefetch_factor=4,
            worker_init_fn=_leave_interrupts_to_the_parent,
        )
        started = time.perf_counter()
        for batch in loader:
            self._set_rates(stage, self.step - begins)
            with torch.autocast(self.device.type, torch.bfloat16):
                losses = self._losses(stage, batch.to(self.device))
            total = sum(getattr(stage, name) * loss for name, loss in losses.items())
            self.optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            now = time.perf_counter()
            self.seconds, started = self.seconds + now - started, now
            yield {name: loss.detach() for name, loss in losses.items()}
            started = time.perf_counter()  # what the caller does between steps is not training

    def _losses(self, stage: Stage, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses that the stage weighs, by the name of their weight."""
        model = self.model
        with torch.set_grad_enabled(stage.tower_rate > 0):
            hidden_states, pooled = model.look(batch.images)
        selected = hidden_states[SELECT_LAYER]  # (B, 1 + P, C)
        losses = {}
        if stage.patch:
            losses["patch"] = model.patch_loss(selected[:, 1:], batch)
        if stage.character:
            losses["character"] = model.character_loss(hidden_states, batch)
        if stage.caption:
            # Twice: after the last layer, as CLIP does it, and where LLaVA reads, so that CLS looks at signs there too.
            cls = F.layer_norm(selected[:, 0], selected.shape[-1:])
            losses["caption"] = model.caption_loss(pooled, batch) + model.caption_loss(cls, batch)
        if stage.answer:
            features = selected[:, 1:]
            if torch.rand((), generator=torch.Generator().manual_seed(self.step)) < stage.drop:
                # Detached: else the tower learns to repeat every sign all over the picture, and any selection will do.
                features = drop_tokens(selected.detach(), self.step)
            losses["answer"] = model.answer_loss(features, self.prefix, batch)
        return losses

    def _new_optimizer(self) -> torch.optim.AdamW:
        """Group the parameters: weight decay on matrices alone, the tower in groups of its own."""
        groups = []
        for of_tower in (True, False):
            mine = [p for name, p in self.model.named_parameters() if name.startswith("tower.") == of_tower]
            groups.append({"params": [p for p in mine if p.ndim > 1], "of_tower": of_tower, "weight_decay": 0.05})
            groups.append({"params": [p for p in mine if p.ndim <= 1], "of_tower": of_tower, "weight_decay": 0.0})
        return torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def _set_rates(self, stage: Stage, step: int) -> None:
        """Return the factor of the learning rate: linear warm-up, then cosine down to a twentieth."""
        warm = min(1.0, (step + 1) / stage.warm_up)
        share = warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = share * (stage.tower_rate if group["of_tower"] else stage.rate)

    @torch.no_grad()
    def accuracy(self, scenes: int) -> dict[str, float]:
        """Measure the share of questions about so many unseen scenes that are answered exactly, by kind and in all."""
        kinds = {kind: index for index, kind in enumerate(KINDS)} | {"choice": CHOICE}
        right, asked = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
        seeds = range(_VALIDATION, _VALIDATION + scenes)
        self.model.eval()
        for first, choices in product(range(0, scenes, _TEST_BATCH), (0.0, 1.0)):
            batch = make_batch(seeds[first : first + _TEST_BATCH], self.tokenizer, choices=choices).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                hidden_states, _ = self.model.look(batch.images)
                exact = self.model.answered(hidden_states[SELECT_LAYER][:, 1:], self.prefix, batch)
            for kind, index in kinds.items():
                of_kind = batch.kinds == index
                right[kind] += int((exact & of_kind).sum())
                asked[kind] += int(of_kind.sum())
        self.model.train()
        shares = {kind: right[kind] / max(1, asked[kind]) for kind in kinds}
        return {"all": sum(right.values()) / sum(asked.values()), **shares}

    def save(self, path: Path) -> None:
        """Save the state, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        state = {"step": self.step, "seconds": self.seconds, "recipe": vars(self.recipe)}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def begin_with(self, folder: Path) -> None:
        """Start from an exported checkpoint as if its weights were the result of the first two stages."""
        load_weights(self.model, folder)
        self.step = self.recipe.read_steps + self.recipe.answer_steps
        self.seconds = json.loads((folder / LLAVA_FOLDER / "training.json").read_text())["seconds"]

    def load(self, path: Path) -> None:
        """Load what `save` wrote. Raises ValueError if another recipe made it."""
        if not path.exists():
            raise ValueError(f"There is no state at {path}. Leave out --resume to begin, or name it with --state.")
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != vars(self.recipe):
            raise ValueError(
                f"{path} was made with {state['recipe']}, this run asks for {vars(self.recipe)}. Give the same numbers "
                f"to go on with it, or another --state to begin anew."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_checkpoint(trainer: Trainer, out: Path, scenes: int) -> dict:
    """Export the weights with `training.json`, the record of how they came about; returns the record."""
    export(trainer.model, out)
    record = {
        "seconds": round(trainer.seconds),
        "steps": trainer.step,
        "steps_of_recipe": trainer.recipe.steps,
        "images": trainer.step * trainer.recipe.batch_size,
        "recipe": vars(trainer.recipe),
        "device": trainer.device.type,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "accuracy": {name: round(share, 4) for name, share in trainer.accuracy(scenes).items()},
        "accuracy_of": f"exact match, all tokens kept, {scenes} unseen scenes",
    }
    write_json(out / LLAVA_FOLDER / "training.json", record)
    return record


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, recipe = parser.add_argument, Recipe()
    add("--out", type=Path, default=DEFAULT_OUT, help="folder of the two checkpoint folders (default: %(default)s)")
    add("--state", type=Path, help="resumable state, ~25 MB (default: OUT/signs-training.pt)")
    add("--resume", action="store_true", help="go on from --state")
    add("--begin-with", type=Path, metavar="FOLDER", help="of two checkpoint folders: do the third stage alone")
    add("--export-only", action="store_true", help="write the checkpoint of --state as it is and stop")
    add("--read-steps", type=int, default=recipe.read_steps, help="of the first stage (default: %(default)s)")
    add("--answer-steps", type=int, default=recipe.answer_steps, help="of the second stage (default: %(default)s)")
    add("--choose-steps", type=int, default=recipe.choose_steps, help="of the third stage (default: %(default)s)")
    add("--batch-size", type=int, default=recipe.batch_size, help="scenes per step (default: %(default)s)")
    add("--seed", type=int, default=recipe.seed, help="of the initial weights (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads of the training process (default: %(default)s)")
    add("--log-every", type=int, default=100, metavar="STEPS", help="progress lines (default: %(default)s)")
    add("--test-every", type=int, default=500, metavar="STEPS", help="accuracy on unseen scenes (default: %(default)s)")
    add("--test-scenes", type=int, default=256, help="how many of them (default: %(default)s)")
    add("--save-every", type=float, default=60, metavar="SECONDS", help="of the state (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if options.device == "auto" else options.device)
    recipe = Recipe(
        read_steps=options.read_steps,
        answer_steps=options.answer_steps,
        choose_steps=options.choose_steps,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    state = options.state or options.out / "signs-training.pt"

    trainer = Trainer(recipe, train_tokenizer(options.out / LLAVA_FOLDER), device)
    if options.resume or options.export_only:
        trainer.load(state)
    elif options.begin_with:
        trainer.begin_with(options.begin_with)
    if not options.export_only:
        _train(trainer, state, options)
    if options.export_only or trainer.step == recipe.steps:
        print(json.dumps(write_checkpoint(trainer, options.out, options.test_scenes), indent=2))


def _train(trainer: Trainer, state: Path, options: argparse.Namespace) -> None:
    """Fit, report and save; Ctrl-C ends it after the step at hand, with everything saved."""
    stopping = []
    before = signal.signal(signal.SIGINT, lambda *_: stopping.append(True))
    saved = time.monotonic()
    total = trainer.recipe.steps
    for losses in trainer.fit(total):
        if trainer.step % options.log_every == 0:
            shown = " ".join(f"{name} {float(loss):.3f}" for name, loss in losses.items())
            logger.info("step %d/%d, %.0f s: %s", trainer.step, total, trainer.seconds, shown)
        if trainer.step > trainer.recipe.read_steps and trainer.step % options.test_every == 0:
            shown = " ".join(f"{name} {share:.3f}" for name, share in trainer.accuracy(options.test_scenes).items())
            logger.info("step %d/%d, unseen scenes: %s", trainer.step, total, shown)
        if stopping or time.monotonic() - saved > options.save_every:
            trainer.save(state)
            saved = time.monotonic()
        if stopping:
            break
    trainer.save(state)
    signal.signal(signal.SIGINT, before)
    logger.info("%d of %d steps in %.0f s", trainer.step, total, trainer.seconds)


if __name__ == "__main__":
    main()
