"""Measure how fast this machine is, in a few seconds."""

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

from llava.perf.devices import HEAD, Device

if TYPE_CHECKING:
    import torch


def measure_device(device: "torch.device", dtype: "torch.dtype") -> Device:
    """Measure the speeds of this machine's `device` in `dtype`. Takes a few seconds."""
    import torch

    is_gpu = device.type == "cuda"
    with torch.inference_mode():
        bandwidth, stream = measure_memory(device, dtype, 16384 if is_gpu else 8192)
        found = Device(
            torch.cuda.get_device_name(device) if is_gpu else f"CPU, threads: {torch.get_num_threads()}",
            matmul=measure_matmul(device, dtype, 8192 if is_gpu else 2048),
            attention=measure_attention(device, dtype, 20 if is_gpu else 1),
            bandwidth=bandwidth,
            stream=stream,
            launch=0.0,
            least=measure_least(device) if is_gpu else 0.0,
            is_async=is_gpu,
        )
        return found._replace(launch=measure_launch(found, device, dtype))


def measure_matmul(device: "torch.device", dtype: "torch.dtype", side: int) -> float:
    """Measure the FLOP/s of a product of two `side` x `side` matrices."""
    import torch

    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    return 2 * side**3 / median_seconds(lambda: left @ right, device)


def measure_attention(device: "torch.device", dtype: "torch.dtype", batch: int) -> float:
    """Measure the FLOP/s of attention as in the vision tower of LLaVA-1.5: 16 heads, 577 tokens, no mask."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, length = 16, 577
    shape = (3, batch, length, heads, HEAD)
    query, key, value = torch.randn(*shape, device=device, dtype=dtype).transpose(2, 3)
    seconds = median_seconds(lambda: scaled_dot_product_attention(query, key, value), device)
    return 4 * batch * heads * length**2 * HEAD / seconds


def measure_memory(device: "torch.device", dtype: "torch.dtype", side: int) -> tuple[float, float]:
    """Measure the bytes/s of a copy, and of a matrix that is multiplied with one row; it is larger than any cache."""
    import torch

    matrix = torch.randn(side, side, device=device, dtype=dtype)
    other, row = torch.empty_like(matrix), torch.randn(1, side, device=device, dtype=dtype)
    copied = 2 * matrix.nbytes / median_seconds(lambda: other.copy_(matrix), device)
    return copied, matrix.nbytes / median_seconds(lambda: torch.nn.functional.linear(row, matrix), device)


def measure_launch(speeds: Device, device: "torch.device", dtype: "torch.dtype") -> float:
    """Measure the seconds that starting an operation takes the host.

    By a decoding step of a narrow language model that fits no cache: its time without that of arithmetic and bytes.
    """
    import torch

    from llava.perf.roofline import decode_ops, predicted
    from llava.perf.sizes import ModelSize, build_model
    from visionzip_patch.compat import CACHE

    size = ModelSize(hidden=256, intermediate=512, layers=24, heads=4, kv_heads=4, vocab=16)
    size = size._replace(tower_hidden=8, tower_intermediate=8, tower_layers=1, tower_heads=1, select_layer=-1)
    model, ids = build_model(size, device, dtype), torch.zeros(1, 1, dtype=torch.long, device=device)
    past = {CACHE: model(input_ids=ids, use_cache=True)[CACHE]}
    seconds = median_seconds(lambda: model(input_ids=ids, use_cache=True, **past), device, rounds=30)
    ops = decode_ops(size, 16, 1, dtype.itemsize)  # the middle of these rounds
    busy = 0.0 if speeds.is_async else predicted(ops, speeds)
    return max(0.0, seconds - busy) / sum(op.count for op in ops)


def measure_least(device: "torch.device", count: int = 100) -> float:
    """Measure the seconds of the shortest operation on a GPU, by a CUDA graph of `count` that wait for each other."""
    import torch

    number, graph = torch.zeros(8, device=device), torch.cuda.CUDAGraph()
    number.add_(1)
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        for _ in range(count):
            number.add_(1)
    return median_seconds(graph.replay, device) / count


def median_seconds(function: Callable, device: "torch.device", *, rounds: int = 9, warm_up: int = 2) -> float:
    """Return the median seconds of a call, over `rounds` calls after `warm_up` others."""
    import torch

    def timed() -> float:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return median([timed() for _ in range(warm_up + rounds)][warm_up:])
