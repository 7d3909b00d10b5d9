"""One request, stage by stage, done in several ways.

Shapes: B requests of one image each, crops of an image, S pixels a side, T tokens of a prompt, C channels.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.bench.published import PublishedTower
from llava.eval.bench.timing import Timing, compare
from llava.eval.cost import (
    Op,
    decode_ops,
    kv_bytes,
    predicted,
    prefill_ops,
    project_ops,
    roofline,
    select_ops,
    tower_ops,
)
from llava.eval.devices import Device
from llava.mm_utils import process_images
from llava.model.anyres import VisionFeatures
from llava.shapes import Shape
from visionzip_patch import zipped

logger = logging.getLogger(__name__)

PREFIX = 35  # tokens of a prompt before its image, as in LLaVA-1.5's
STAGES = ("preprocess", "tower", "select + merge", "project", "prefill", "first token", "answer")


class Way(NamedTuple):
    """How a request is dealt with."""

    name: str
    budget: tuple[int, int] | None = None  # dominant and contextual tokens of a crop; None: all tokens
    fast: str | None = None  # of `generate`
    published: bool = False  # the tower as in VisionZip's published code

    @contextmanager
    def on(self, model) -> Iterator[None]:
        if self.budget is None:
            yield
        else:
            with zipped(model, dominant=self.budget[0], contextual=self.budget[1]):
                yield


class Setting(NamedTuple):
    """What all ways have in common."""

    name: str  # of the shape or checkpoint
    model: nn.Module
    image_processor: object
    shape: Shape
    device: torch.device
    dtype: torch.dtype
    text: int  # tokens of a prompt, the image not counted
    new: int  # tokens of an answer
    patience: float  # seconds that one stage of all ways may take


class Cost(NamedTuple):
    """What a stage asks for, by calculation."""

    flops: float
    bytes: float
    limit: float  # seconds: no device of these ceilings is faster
    expected: float  # seconds, with what kernels and launches take

    @classmethod
    def of(cls, ops: Sequence[Op], device: Device, launches: bool) -> "Cost":
        flops, moved = (sum(getattr(op, name) * op.count for op in ops) for name in ("flops", "bytes"))
        return cls(flops, moved, roofline(ops, device), predicted(ops, device, launches=launches))


class Measured(NamedTuple):
    """What one way took for one batch."""

    shape: str
    way: str
    batch: int
    tokens: int  # of an image, that the language model gets
    stages: dict[str, Timing | None]  # by STAGES; None: out of memory
    per_token: float | None  # seconds of a decoding step
    costs: dict[str, Cost]  # by stage: counted work, limits, predictions
    kv_bytes: int
    prepared: float  # seconds spent on graphs and compiling


def ways_of(shape: Shape, budgets: Sequence[tuple[int, int]], batch: int, fast: Sequence[str]) -> list[Way]:
    """The rows of the table: all ways at the first budget, and ours at the others where the batch is 1."""
    first, *others = budgets
    rows = [Way("all tokens"), *(Way(f"all tokens, {mode}", fast=mode) for mode in fast)]
    rows += [Way(f"{name_of(first)}, published", first, published=True), Way(name_of(first), first)]
    rows += [Way(f"{name_of(first)}, {mode}", first, mode) for mode in fast]
    return rows + [Way(f"{name_of(other)}, {fast[-1]}", other, fast[-1]) for other in others if batch == 1]


def name_of(budget: tuple[int, int]) -> str:
    return f"{budget[0]}+{budget[1]}"


def sample_image(shape: Shape) -> Image.Image:
    """A picture that fills as many crops as the shape says: a photograph's size, or a square of 2 x 2 tiles."""
    size = (640, 480) if shape.crops == 1 else (2 * shape.image_size, 2 * shape.image_size)
    return Image.linear_gradient("L").resize(size).convert("RGB")


@torch.inference_mode()
def measure_batch(setting: Setting, ways: Sequence[Way], batch: int, device: Device) -> list[Measured]:
    """Every stage in every way, for `batch` requests at a time."""
    model, images = setting.model, [sample_image(setting.shape)] * batch
    published = {
        way.budget: PublishedTower(model.get_vision_tower(), *way.budget)
        for way in ways
        if way.published and way.budget
    }
    runs = [Request(setting, way, images, published.get(way.budget) if way.published else None) for way in ways]
    timings: dict[str, dict[str, Timing | None]] = {}
    with tqdm(STAGES, desc=f"{setting.name}, batch {batch}", unit="stage", dynamic_ncols=True) as bar:
        for stage in bar:
            bar.set_postfix_str(stage)
            different = runs[:1] if stage == "preprocess" else runs
            preparations = {run.way.name: partial(run.stage, stage) for run in different}
            timings[stage] = compare(preparations, setting.device, setting.patience)
    timings["preprocess"] = dict.fromkeys((run.way.name for run in runs), timings["preprocess"][runs[0].way.name])
    return [run.summary({stage: timings[stage][run.way.name] for stage in STAGES}, device) for run in runs]


class Clock(BaseStreamer):
    """When each token came."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Request:
    """A batch of requests in one way; each `stage` is a function that can be timed, with inputs of its own."""

    def __init__(self, setting: Setting, way: Way, images: list[Image.Image], published: PublishedTower | None):
        self.setting, self.way, self.images, self.published = setting, way, images, published
        model, device = setting.model, setting.device
        self.sizes = [image.size for image in images]
        self.engine = model.engine(way.fast)
        self.steps: list[float] = []  # seconds of a decoding step, per answer
        self.prepared = 0.0  # seconds spent on graphs and compiling
        self.pixels = self.preprocess().to(setting.dtype)  # (B, 3, S, S) or (B, crops, 3, S, S)
        self.crops = self.pixels.flatten(0, -4).to(device)  # (B * crops, 3, S, S)
        self.ids = torch.full((len(images), setting.text + 1), 5)
        self.ids[:, PREFIX] = IMAGE_TOKEN_INDEX
        self.ids = self.ids.to(device)
        with way.on(model):
            self.features = self.encode()
        self.image_tokens = len(self.features[0])

    def stage(self, name: str) -> Callable:
        """What is timed as `name`, one of STAGES."""
        prepare = {
            "preprocess": lambda: self.preprocess,
            "tower": self.tower,
            "select + merge": self.select,
            "project": self.project,
            "prefill": self.prefill,
            "first token": lambda: partial(self.generate, 1),
            "answer": lambda: self.answer,
        }
        function = prepare[name]()

        def call() -> None:
            known = len(self.engine.times)
            function()
            self.prepared += sum(self.engine.times[known:])

        return call

    def preprocess(self) -> Tensor:
        return process_images(self.images, self.setting.image_processor, self.setting.model.config)

    def tower(self) -> Callable:
        """Pixels to hidden states, without selection."""
        tower = self.setting.model.get_vision_tower()
        if self.published:
            return partial(self.published.states, self.crops)
        return partial(self.engine.tower_graphs.run, ("bench", self.crops.shape), tower.hidden_states, self.crops)

    def select(self) -> Callable:
        tower = self.setting.model.get_vision_tower()
        if self.way.budget is None:
            return lambda: None
        if self.published:
            return partial(self.published.reduce, *self.published.states(self.crops))
        before, after = tower.hidden_states(self.crops)
        with self.way.on(self.setting.model):
            reducer = tower.reducer
        key = ("bench select", before.shape, self.way.budget)
        return partial(self.engine.tower_graphs.run, key, partial(reducer.reduce, tower.selected_layer), before, after)

    def project(self) -> Callable:
        model = self.setting.model
        with self.way.on(model):
            tokens = model.get_vision_tower()(self.crops)
        return partial(model.project, tokens)

    def prefill(self) -> Callable:
        """Embeddings of the whole prompt to the logits that follow it."""
        model = self.setting.model
        text = model.get_input_embeddings()(self.ids.clamp(min=0))
        embeds = torch.stack(
            [torch.cat([t[:PREFIX], f, t[PREFIX + 1 :]]) for t, f in zip(text, self.features, strict=True)]
        )
        if self.way.fast is None:
            return partial(model, inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        return partial(self.extend, embeds)

    def extend(self, embeds: Tensor) -> Tensor:
        rows, length, _ = embeds.shape
        with self.engine.open_cache(rows, length + self.setting.new) as sequences:
            return sequences.extend(embeds, [length] * rows)

    def encode(self) -> list[Tensor]:
        """Tokens of each image as the language model gets them."""
        model = self.setting.model
        if not self.published:
            encoder = self.engine if self.way.fast else model
            return encoder.image_features(self.pixels.to(self.setting.device), self.sizes)
        found = self.published(self.pixels.flatten(0, -4).to(self.setting.device))
        parts = (found.tokens.split(self.setting.shape.crops), found.position.split(self.setting.shape.crops))
        return model.image_features(
            [VisionFeatures(*part, found.side) for part in zip(*parts, strict=True)], self.sizes
        )

    def generate(self, new: int, **options) -> Tensor:
        """Pixels in the host's memory to `new` ids there: tower, selection, projection, prefill, decoding."""
        with self.way.on(self.setting.model):
            features = self.encode()
        return self.setting.model.generate(
            self.ids,
            image_features=features,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,  # as many tokens in every way
            pad_token_id=0,
            fast=self.way.fast,
            **options,
        ).cpu()

    def answer(self) -> None:
        """A whole answer; notes how long a decoding step of it took."""
        clock = Clock()
        self.generate(self.setting.new, streamer=clock)
        times = clock.times[-self.setting.new :]  # transformers also shows the prompt
        self.steps.append(median(later - earlier for earlier, later in pairwise(times)))

    def summary(self, stages: dict[str, Timing | None], device: Device) -> Measured:
        setting, per_token = self.setting, median(self.steps) if stages["answer"] else None
        batch = len(self.images)
        costs = {stage: Cost.of(ops, device, self.engine.is_static) for stage, ops in self.work().items()}
        kept = kv_bytes(setting.shape, self.image_tokens + setting.text, batch, setting.dtype.itemsize)
        return Measured(
            setting.name, self.way.name, batch, self.image_tokens, stages, per_token, costs, kept, self.prepared
        )

    def work(self) -> dict[str, list[Op]]:
        """The operations of each stage, and of a decoding step, "per token"."""
        shape, size, batch = self.setting.shape, self.setting.dtype.itemsize, len(self.images)
        prompt, crops = self.image_tokens + self.setting.text, batch * shape.crops
        stages = {
            "tower": tower_ops(shape, crops, size),
            "select + merge": select_ops(shape, crops, *self.way.budget, size) if self.way.budget else [],
            "project": project_ops(shape, batch * self.image_tokens, size),
            "prefill": prefill_ops(shape, prompt, batch, size),
        }
        first = [op for ops in stages.values() for op in ops]
        step = decode_ops(shape, prompt, batch, size, growing=self.way.fast is None)
        return {**stages, "first token": first, "per token": step}
