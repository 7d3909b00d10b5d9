"""Measure how cost grows when something doubles: tokens, batch, images, questions of an image, turns, processes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from llava.inference.chat import ChatSession
from llava.inference.decoding import Decoding
from llava.inference.embedded import EMBEDDED_CHECKPOINT, EMBEDDED_DATA, playground
from llava.perf.bench.stages import Request, Setting, Variant, sample_image
from llava.perf.bench.timing import compare, synchronize
from llava.perf.bench.workload import draw_images, pope_shaped, together

TURNS = 20
PROCESSES = (1, 2)


class Growth(NamedTuple):
    """The seconds that something takes, and twice as much of it."""

    model: str
    what: str
    unit: str  # what is timed
    sizes: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def ratio(self) -> float:
        return self.seconds[1] / self.seconds[0]


def measure_growth(
    setting: Setting, tokenizer, budget: tuple[int, int], fast: str, decoding: Decoding, images: int
) -> list[Growth]:
    """Measure all doublings that one process can see; `images` is the smaller number of images."""
    grow = partial(double_workload, setting, tokenizer, budget, fast, decoding)
    doublings: list[Callable[[], Growth]] = [
        partial(double_tokens, setting, budget, fast),
        partial(double_batch, setting, budget, fast),
        partial(grow, what="images", sizes=[(images, 18), (2 * images, 18)]),
        partial(grow, what="questions", sizes=[(images, 9), (images, 18)]),
        partial(double_turns, setting, tokenizer, budget, fast, decoding),
    ]
    return [double() for double in tqdm(doublings, desc="growth", unit="doubling", dynamic_ncols=True)]


def time_both(setting: Setting, once: Callable, twice: Callable) -> tuple[float, float]:
    """Time two functions in turns; returns the median seconds of each. Raises ValueError if memory runs out."""
    found = compare({"once": lambda: once, "twice": lambda: twice}, setting.device, setting.patience)
    if (first := found["once"]) is None or (second := found["twice"]) is None:
        raise ValueError(f"{setting.name}: out of memory at twice the size. Leave growth out of --parts.")
    return first.seconds, second.seconds


def double_tokens(setting: Setting, budget: tuple[int, int], fast: str) -> Growth:
    """Double the tokens of an image."""
    image = [sample_image(setting.size)]
    once, twice = (Request(setting, Variant("", (k * budget[0], k * budget[1]), fast), image, None) for k in (1, 2))
    seconds = time_both(setting, partial(once.generate, 1), partial(twice.generate, 1))
    return Growth(setting.name, "tokens of an image", "first token", (once.image_tokens, twice.image_tokens), seconds)


def double_batch(setting: Setting, budget: tuple[int, int], fast: str, batch: int = 4) -> Growth:
    """Double the requests in a batch, from `batch` on."""
    sizes, image = (batch, 2 * batch), sample_image(setting.size)
    once, twice = (Request(setting, Variant("", budget, fast), [image] * n, None) for n in sizes)
    seconds = time_both(setting, partial(once.generate, setting.new), partial(twice.generate, setting.new))
    return Growth(setting.name, "requests in a batch", "batch", sizes, seconds)


def double_workload(
    setting: Setting,
    tokenizer,
    budget: tuple[int, int],
    fast: str,
    decoding: Decoding,
    *,
    what: str,
    sizes: list[tuple[int, int]],
) -> Growth:
    """Double a POPE-shaped run.

    Args:
        what: grows: "images", or "questions" about each.
        sizes: images, and questions about each, at first and doubled.
    """
    with tempfile.TemporaryDirectory() as folder, Variant("", budget, fast).on(setting.model):
        names = draw_images(Path(folder), max(images for images, _ in sizes))
        workloads = (pope_shaped(Path(folder), names[:images], decoding, each) for images, each in sizes)
        once, twice = (partial(together, setting, tokenizer, workload, 16, fast) for workload in workloads)
        seconds = time_both(setting, once, twice)
    first, doubled = (images if what == "images" else each for images, each in sizes)
    name = "images" if what == "images" else "questions about an image"
    return Growth(setting.name, name, "run", (first, doubled), seconds)


def double_turns(setting: Setting, tokenizer, budget: tuple[int, int], fast: str, decoding: Decoding) -> Growth:
    """Compare a turn late in a conversation with one early in it."""
    with Variant("", budget, fast).on(setting.model):
        conversations = [list(turn_seconds(setting, tokenizer, fast, decoding)) for _ in range(4)][1:]
    turns = [median(each) for each in zip(*conversations, strict=True)]
    early, late = turns[TURNS // 2 - 5 : TURNS // 2], turns[TURNS - 5 :]
    return Growth(setting.name, "turns of a chat", "turn", (TURNS // 2, TURNS), (median(early), median(late)))


def turn_seconds(setting: Setting, tokenizer, fast: str, decoding: Decoding) -> Iterator[float]:
    """Yield the seconds of each turn of a conversation that begins with an image; each has as many new tokens."""
    setting.model.fast = fast
    image: list[Image.Image] = [sample_image(setting.size)]
    session = ChatSession(setting.model, tokenizer, setting.image_processor, decoding)
    try:
        for _ in range(TURNS):
            synchronize(setting.device)
            start = time.perf_counter()
            for _ in session.ask("what is in the image?", image):
                pass
            synchronize(setting.device)
            yield time.perf_counter() - start
            image = []
    finally:
        setting.model.fast = None
        session.close()


def double_processes() -> Growth:
    """Run the embedded benchmark in one process and in two, which load the model each; its result file has the time."""
    seconds: list[float] = []
    for count in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "llava.utils.launch", "--nproc_per_node", str(count)]
            command = [sys.executable, *launch, "-m", "llava.eval.run"]
            checkpoint = str(playground() / EMBEDDED_CHECKPOINT)
            data = playground() / EMBEDDED_DATA
            options = ["--question-file", str(data / "llava_textvqa_val_v051_ocr.jsonl")]
            options += ["--image-folder", str(data / "train_images"), "--out", folder, "--num-workers", "0"]
            options += ["--annotation-file", str(data / "TextVQA_0.5.1_val.json"), "--device", "cpu"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(
                [*command, "textvqa", checkpoint, *options], check=True, capture_output=True, env=environment
            )
            (result,) = Path(folder).glob("*.result.json")
            seconds.append(json.loads(result.read_text())["timing"]["seconds"])
    return Growth("llava-signs", "processes", "run of the embedded benchmark", PROCESSES, (seconds[0], seconds[1]))
