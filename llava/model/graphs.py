"""Run a function of tensors many times with little host work: as a CUDA graph, compiled by Inductor, or both."""

import logging
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

MODES = ("static", "graphs", "compile")
OFF = "off"  # a user's fourth choice: none of this
WARM_UPS = 2  # before a capture: libraries choose kernels and take workspaces then
SHAPES = 1024  # that may be compiled for in a process; torch gives up after 8


class Captured(NamedTuple):
    """A CUDA graph, and the tensors that it reads and writes at each replay."""

    graph: "torch.cuda.CUDAGraph"
    inputs: tuple[Tensor, ...]
    output: Tensor | tuple


class Graphs:
    """Functions by key, each prepared at its first call and replayed afterwards.

    Args:
        mode: "static" calls the function as it is; "graphs" captures it on a CUDA device, and is "static" elsewhere;
            "compile" compiles it first, anywhere. Inductor keeps what it compiled in TORCHINDUCTOR_CACHE_DIR for the
            next process.
        times: gets the seconds of each preparation, capture or compilation.
    """

    def __init__(self, mode: str = "static", times: list[float] | None = None):
        if mode not in MODES:
            raise ValueError(f"fast={mode!r} is unknown; choose one of {', '.join(MODES)}, or {OFF}.")
        self.mode, self.times = mode, [] if times is None else times
        self.prepared: dict[Hashable, Callable] = {}
        self.pool, self.can_capture = None, True

    def run(self, key: Hashable, function: Callable, *inputs: Tensor):
        """Compute `function(*inputs)`. What comes back may be overwritten by the next call.

        Args:
            *inputs: of the shapes that `key` stands for.
            key: of whatever decides what the function does, shapes of the inputs included.
            function: of tensors that keep their shapes; may also read, and write at the same place again, tensors that
                stay where they are.
        """
        if self.mode == "static":
            return function(*inputs)
        if key not in self.prepared:
            if self.mode == "compile" and not self.times:
                warn_once(logger, "Compiling. Every new length of prompt or answer takes up to a minute once.")
            start = time.perf_counter()
            self.prepared[key] = self.prepare(function, inputs)
            self.times.append(time.perf_counter() - start)
            logger.info("%s prepared for %s in %.1f s", function_name(function), key, self.times[-1])
        return self.prepared[key](*inputs)

    def prepare(self, function: Callable, inputs: tuple[Tensor, ...]) -> Callable:
        """Return what computes `function` sooner for inputs of these shapes; where nothing does, `function` itself."""
        if self.mode == "compile":
            from torch._dynamo.exc import FailOnRecompileLimitHit  # here: Dynamo takes seconds to import

            try:
                function = compiled(function, inputs)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, FailOnRecompileLimitHit) as error:
                self.mode = "static"
                why = str(error).partition("\n")[0]
                logger.warning("%s cannot be compiled, and runs as it is: %s", function_name(function), why)
                return function
        device = inputs[0].device
        if device.type != "cuda" or not self.can_capture:
            return function
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            try:
                return partial(replay, self.capture(function, inputs))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.can_capture = False
                why = str(error).partition("\n")[0]
                logger.warning("No CUDA graphs from here on, as %s allows none: %s", function_name(function), why)
                return function
            finally:
                torch.cuda.set_stream(stream)  # a capture that fails leaves its own

    def capture(self, function: Callable, inputs: tuple[Tensor, ...]) -> Captured:
        """Record a call of `function` on copies of `inputs` as a CUDA graph."""
        inputs = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            output = function(*inputs)
        return Captured(graph, inputs, output)

    def clear(self) -> None:
        """Forget all graphs: the memory that they read has moved."""
        self.prepared.clear()
        self.pool = None


def compiled(function: Callable, inputs: tuple[Tensor, ...]) -> Callable:
    """Compile `function` by Inductor for inputs of these shapes."""
    faster = torch.compile(function, dynamic=False, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES):
        faster(*inputs)
    return faster


def replay(captured: Captured, *inputs: Tensor):
    """Run a CUDA graph on new inputs, and return its output, which the next replay overwrites."""
    for static, tensor in zip(captured.inputs, inputs, strict=True):
        static.copy_(tensor)
    captured.graph.replay()
    return captured.output


def function_name(function: Callable) -> str:
    """Return the name of a function, or of the one inside of a partial, for messages."""
    return getattr(getattr(function, "func", function), "__qualname__", repr(function))
