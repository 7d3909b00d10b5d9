"""Measure one request stage by stage, in several variants.

Shapes: B requests of one image each, crops of an image, S pixels a side, T tokens of a prompt, C channels.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.anyres import VisionFeatures
from llava.perf.bench.published import PublishedTower
from llava.perf.bench.timing import Timing, compare
from llava.perf.devices import Device
from llava.perf.roofline import (
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
from llava.perf.sizes import ModelSize
from visionzip_patch import zipped

logger = logging.getLogger(__name__)

PREFIX = 35  # tokens of a prompt before its image, as in LLaVA-1.5's
STAGES = ("preprocess", "tower", "select + merge", "project", "prefill", "first token", "answer")


class Variant(NamedTuple):
    """One way to answer a request."""

    name: str
    budget: tuple[int, int] | None = None  # dominant and contextual tokens of a crop; None: all tokens
    fast: str | None = None  # of `generate`
    published: bool = False  # the tower as in VisionZip's published code

    @contextmanager
    def on(self, model) -> Iterator[None]:
        """Zip `model` to the budget for the length of a `with` block."""
        if self.budget is None:
            yield
        else:
            with zipped(model, dominant=self.budget[0], contextual=self.budget[1]):
                yield


class Setting(NamedTuple):
    """What all variants have in common."""

    name: str  # of the model: one of SIZES, or a checkpoint
    model: Any  # a LLaVA
    image_processor: Any
    size: ModelSize
    device: torch.device
    dtype: torch.dtype
    text: int  # tokens of a prompt, the image not counted
    new: int  # tokens of an answer
    patience: float  # seconds that one stage of all variants may take


class StageCost(NamedTuple):
    """The calculated cost of a stage."""

    flops: float  # FLOP
    bytes: float  # moved
    limit: float  # seconds: a lower bound on a device of these peaks
    expected: float  # seconds, with what kernels and launches take

    @classmethod
    def of(cls, ops: Sequence[Op], device: Device, launches: bool) -> "StageCost":
        """Sum up operations; without `launches`, starting them is free."""
        flops, moved = (sum(getattr(op, name) * op.count for op in ops) for name in ("flops", "bytes"))
        return cls(flops, moved, roofline(ops, device), predicted(ops, device, launches=launches))


class RequestMeasurement(NamedTuple):
    """What one variant took for one batch; the fields are those of bench.json."""

    shape: str  # name of the model
    way: str  # name of the variant
    batch: int
    tokens: int  # of an image, that the language model gets
    stages: dict[str, Timing | None]  # by STAGES; None: out of memory
    per_token: float | None  # seconds of a decoding step
    costs: dict[str, StageCost]  # by stage: counted work, limits, predictions
    kv_bytes: int
    prepared: float  # seconds spent on graphs and compiling

    @property
    def has_answer(self) -> bool:
        """Whether neither the first token nor the whole answer ran out of memory."""
        return self.stages["first token"] is not None and self.stages["answer"] is not None

    def timing(self, stage: str) -> Timing:
        """Return what a stage took, which must not have run out of memory."""
        timing = self.stages[stage]
        assert timing is not None, f"{self.way}, batch {self.batch}: {stage} ran out of memory"
        return timing

    def seconds(self, stage: str) -> float:
        """Return the median seconds of a stage, or of a decoding step: "per token"."""
        if stage != "per token":
            return self.timing(stage).seconds
        assert self.per_token is not None, f"{self.way}, batch {self.batch}: the answer ran out of memory"
        return self.per_token


def variants_of(size: ModelSize, budgets: Sequence[tuple[int, int]], batch: int, fast: Sequence[str]) -> list[Variant]:
    """List the rows of the table: all variants at the first budget, and ours at the others where the batch is 1."""
    first, *others = budgets
    rows = [Variant("all tokens"), *(Variant(f"all tokens, {mode}", fast=mode) for mode in fast)]
    rows += [Variant(f"{name_of(first)}, published", first, published=True), Variant(name_of(first), first)]
    rows += [Variant(f"{name_of(first)}, {mode}", first, mode) for mode in fast]
    return rows + [Variant(f"{name_of(other)}, {fast[-1]}", other, fast[-1]) for other in others if batch == 1]


def name_of(budget: tuple[int, int]) -> str:
    """Write a budget as 54+10."""
    return f"{budget[0]}+{budget[1]}"


def sample_image(size: ModelSize) -> Image.Image:
    """Draw a picture that fills as many crops as the model has: a photograph's size, or a square of 2 x 2 tiles."""
    pixels = (640, 480) if size.crops == 1 else (2 * size.image_size, 2 * size.image_size)
    return Image.linear_gradient("L").resize(pixels).convert("RGB")


@torch.inference_mode()
def measure_batch(
    setting: Setting, variants: Sequence[Variant], batch: int, device: Device
) -> list[RequestMeasurement]:
    """Measure every stage in every variant, for `batch` requests at a time; `device` gives the lower bounds."""
    model, images = setting.model, [sample_image(setting.size)] * batch
    published = {
        variant.budget: PublishedTower(model.get_vision_tower(), *variant.budget)
        for variant in variants
        if variant.published and variant.budget
    }
    runs = [
        Request(setting, variant, images, published[variant.budget] if variant.published and variant.budget else None)
        for variant in variants
    ]
    timings: dict[str, dict[str, Timing | None]] = {}
    with tqdm(STAGES, desc=f"{setting.name}, batch {batch}", unit="stage", dynamic_ncols=True) as bar:
        for stage in bar:
            bar.set_postfix_str(stage)
            different = runs[:1] if stage == "preprocess" else runs
            preparations = {run.variant.name: partial(run.stage, stage) for run in different}
            timings[stage] = compare(preparations, setting.device, setting.patience)
    timings["preprocess"] = dict.fromkeys(
        (run.variant.name for run in runs), timings["preprocess"][runs[0].variant.name]
    )
    return [run.summary({stage: timings[stage][run.variant.name] for stage in STAGES}, device) for run in runs]


class Clock(BaseStreamer):
    """A streamer that notes when each token comes, in seconds."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Request:
    """A batch of requests in one variant; each `stage` is a function that can be timed, with inputs of its own."""

    def __init__(self, setting: Setting, variant: Variant, images: list[Image.Image], published: PublishedTower | None):
        self.setting, self.variant, self.images, self.published = setting, variant, images, published
        model, device = setting.model, setting.device
        self.sizes = [image.size for image in images]
        self.engine = model.engine(variant.fast)
        self.steps: list[float] = []  # seconds of a decoding step, per answer
        self.prepared = 0.0  # seconds spent on graphs and compiling
        self.pixels = self.preprocess().to(setting.dtype)  # (B, 3, S, S) or (B, crops, 3, S, S)
        self.crops = self.pixels.flatten(0, -4).to(device)  # (B * crops, 3, S, S)
        self.ids = torch.full((len(images), setting.text + 1), 5)
        self.ids[:, PREFIX] = IMAGE_TOKEN_INDEX
        self.ids = self.ids.to(device)
        with variant.on(model):
            self.features = self.encode()
        self.image_tokens = len(self.features[0])

    def stage(self, name: str) -> Callable:
        """Make the function that is timed as `name`, one of STAGES."""
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
        """Prepare the images: (B, 3, S, S) or (B, crops, 3, S, S)."""
        pixels = process_images(self.images, self.setting.image_processor, self.setting.model.config)
        return pixels if isinstance(pixels, Tensor) else torch.stack(pixels)

    def tower(self) -> Callable:
        """Make a function from pixels to hidden states, without selection."""
        tower = self.setting.model.get_vision_tower()
        if self.published:
            return partial(self.published.states, self.crops)
        return partial(self.engine.tower_graphs.run, ("bench", self.crops.shape), tower.hidden_states, self.crops)

    def select(self) -> Callable:
        """Make a function from hidden states to the tokens that stay."""
        tower = self.setting.model.get_vision_tower()
        if self.variant.budget is None:
            return lambda: None
        if self.published:
            return partial(self.published.reduce, *self.published.states(self.crops))
        before, after = tower.hidden_states(self.crops)
        with self.variant.on(self.setting.model):
            reducer = tower.reducer

        def reduce(before: Tensor, after: Tensor) -> VisionFeatures:
            return reducer.reduce(tower.evidence(before, after), after)

        key = ("bench select", before.shape, self.variant.budget)
        return partial(self.engine.tower_graphs.run, key, reduce, before, after)

    def project(self) -> Callable:
        """Make a function from the tower's tokens to those of the language model."""
        model = self.setting.model
        with self.variant.on(model):
            tokens = model.get_vision_tower()(self.crops)
        return partial(model.project, tokens)

    def prefill(self) -> Callable:
        """Make a function from the embeddings of the whole prompt to the logits that follow it."""
        model = self.setting.model
        text = model.get_input_embeddings()(self.ids.clamp(min=0))
        embeds = torch.stack(
            [torch.cat([t[:PREFIX], f, t[PREFIX + 1 :]]) for t, f in zip(text, self.features, strict=True)]
        )
        if self.variant.fast is None:
            return partial(model, inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        return partial(self.extend, embeds)

    def extend(self, embeds: Tensor) -> Tensor:
        """Run the prompt, (B, T, C), through our engine with a cache of fixed size."""
        rows, length, _ = embeds.shape
        with self.engine.open_cache(rows, length + self.setting.new) as sequences:
            return sequences.extend(embeds, [length] * rows)

    def encode(self) -> list[Tensor]:
        """Compute the tokens of each image as the language model gets them."""
        model = self.setting.model
        if not self.published:
            encoder = self.engine if self.variant.fast else model
            return encoder.image_features(self.pixels.to(self.setting.device), self.sizes)
        found = self.published(self.pixels.flatten(0, -4).to(self.setting.device))
        assert found.position is not None, "the published code selects"
        crops = self.setting.size.crops
        parts = zip(found.tokens.split(crops), found.position.split(crops), strict=True)
        return model.image_features([VisionFeatures(*part, found.side) for part in parts], self.sizes)

    def generate(self, new: int, **options) -> Tensor:
        """Answer with `new` tokens: tower, selection, projection, prefill, decoding; from and to the host's memory."""
        with self.variant.on(self.setting.model):
            features = self.encode()
        return self.setting.model.generate(
            self.ids,
            image_features=features,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,  # as many tokens in every variant
            pad_token_id=0,
            fast=self.variant.fast,
            **options,
        ).cpu()

    def answer(self) -> None:
        """Give a whole answer, and note how long a decoding step of it took."""
        clock = Clock()
        self.generate(self.setting.new, streamer=clock)
        times = clock.times[-self.setting.new :]  # transformers also shows the prompt
        self.steps.append(median(later - earlier for earlier, later in pairwise(times)))

    def summary(self, stages: dict[str, Timing | None], device: Device) -> RequestMeasurement:
        """Put what was measured next to what is calculated."""
        setting, per_token = self.setting, median(self.steps) if stages["answer"] else None
        batch = len(self.images)
        costs = {stage: StageCost.of(ops, device, self.engine.is_static) for stage, ops in self.work().items()}
        kept = kv_bytes(setting.size, self.image_tokens + setting.text, batch, setting.dtype.itemsize)
        return RequestMeasurement(
            setting.name, self.variant.name, batch, self.image_tokens, stages, per_token, costs, kept, self.prepared
        )

    def work(self) -> dict[str, list[Op]]:
        """List the operations of each stage, and of a decoding step: "per token"."""
        size, dtype_bytes, batch = self.setting.size, self.setting.dtype.itemsize, len(self.images)
        prompt, crops = self.image_tokens + self.setting.text, batch * size.crops
        stages = {
            "tower": tower_ops(size, crops, dtype_bytes),
            "select + merge": select_ops(size, crops, *self.variant.budget, dtype_bytes) if self.variant.budget else [],
            "project": project_ops(size, batch * self.image_tokens, dtype_bytes),
            "prefill": prefill_ops(size, prompt, batch, dtype_bytes),
        }
        first = [op for ops in stages.values() for op in ops]
        step = decode_ops(size, prompt, batch, dtype_bytes, growing=self.variant.fast is None)
        return {**stages, "first token": first, "per token": step}
