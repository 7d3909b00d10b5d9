"""What becomes of the cost when something doubles: tokens, batch, images, questions of an image, turns, processes."""

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
from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
from llava.perf.bench.stages import Request, Setting, Variant, sample_image
from llava.perf.bench.timing import compare, synchronize
from llava.perf.bench.workload import draw_images, pope_shaped, together

TURNS = 20
PROCESSES = (1, 2)


class Growth(NamedTuple):
    """Cost at a size and at twice that."""

    model: str
    what: str
    unit: str  # what the seconds are of
    sizes: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def ratio(self) -> float:
        return self.seconds[1] / self.seconds[0]


def measure_growth(
    setting: Setting, tokenizer, budget: tuple[int, int], fast: str, decoding: Decoding, images: int
) -> list[Growth]:
    """All doublings that one process can see. `images` is the smaller number of them."""
    grow = partial(double_workload, setting, tokenizer, budget, fast, decoding)
    doublings: list[Callable[[], Growth]] = [
        partial(double_tokens, setting, budget, fast),
        partial(double_batch, setting, budget, fast),
        partial(grow, what="images", sizes=[(images, 18), (2 * images, 18)]),
        partial(grow, what="questions", sizes=[(images, 9), (images, 18)]),
        partial(double_turns, setting, tokenizer, budget, fast, decoding),
    ]
    return [double() for double in tqdm(doublings, desc="growth", unit="doubling", dynamic_ncols=True)]


def pair(setting: Setting, functions: list[Callable]) -> tuple[float, float]:
    preparations = {str(i): (lambda function=function: function) for i, function in enumerate(functions)}
    once, twice = compare(preparations, setting.device, setting.patience).values()
    return once.seconds, twice.seconds


def double_tokens(setting: Setting, budget: tuple[int, int], fast: str) -> Growth:
    image = [sample_image(setting.size)]
    requests = [Request(setting, Variant("", (k * budget[0], k * budget[1]), fast), image, None) for k in (1, 2)]
    tokens = tuple(request.image_tokens for request in requests)
    seconds = pair(setting, [partial(r.generate, 1) for r in requests])
    return Growth(setting.name, "tokens of an image", "first token", tokens, seconds)


def double_batch(setting: Setting, budget: tuple[int, int], fast: str, batch: int = 4) -> Growth:
    sizes = (batch, 2 * batch)
    requests = [Request(setting, Variant("", budget, fast), [sample_image(setting.size)] * n, None) for n in sizes]
    seconds = pair(setting, [partial(r.generate, setting.new) for r in requests])
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
    """A POPE-shaped run of (images, questions about each)."""
    with tempfile.TemporaryDirectory() as folder, Variant("", budget, fast).on(setting.model):
        names = draw_images(Path(folder), max(images for images, _ in sizes))
        workloads = [pope_shaped(Path(folder), names[:images], decoding, each) for images, each in sizes]
        seconds = pair(setting, [partial(together, setting, tokenizer, workload, 16, fast) for workload in workloads])
    counts = tuple(images if what == "images" else each for images, each in sizes)
    return Growth(setting.name, "images" if what == "images" else "questions about an image", "run", counts, seconds)


def double_turns(setting: Setting, tokenizer, budget: tuple[int, int], fast: str, decoding: Decoding) -> Growth:
    """The time of a turn late in a conversation against one early in it."""
    with Variant("", budget, fast).on(setting.model):
        conversations = [list(turn_seconds(setting, tokenizer, fast, decoding)) for _ in range(4)][1:]
    turns = [median(each) for each in zip(*conversations, strict=True)]
    early, late = turns[TURNS // 2 - 5 : TURNS // 2], turns[TURNS - 5 :]
    return Growth(setting.name, "turns of a chat", "turn", (TURNS // 2, TURNS), (median(early), median(late)))


def turn_seconds(setting: Setting, tokenizer, fast: str, decoding: Decoding) -> Iterator[float]:
    """Each turn of a conversation that begins with an image; every turn puts as many new tokens in."""
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
    """The embedded benchmark in one process and in two, as its own result files say; each loads the model itself."""
    seconds = []
    for count in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "llava.utils.launch", "--nproc_per_node", str(count)]
            command = [sys.executable, *launch, "-m", "llava.eval.run"]
            checkpoint = str(playground() / EMBEDDED_CHECKPOINT)
            data = playground() / "data/eval/signs"
            options = ["--question-file", str(data / "llava_textvqa_val_v051_ocr.jsonl")]
            options += ["--image-folder", str(data / "train_images"), "--out", folder, "--num-workers", "0"]
            options += ["--annotation-file", str(data / "TextVQA_0.5.1_val.json"), "--device", "cpu"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(
                [*command, "textvqa", checkpoint, *options], check=True, capture_output=True, env=environment
            )
            (result,) = Path(folder).glob("*.result.json")
            seconds.append(json.workloads(result.read_text())["timing"]["seconds"])
    return Growth("llava-signs", "processes", "run of the embedded benchmark", PROCESSES, tuple(seconds))
