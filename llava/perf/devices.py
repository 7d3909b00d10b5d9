"""Speeds of devices by their data sheets, and the share of them to expect.

Imports nothing heavy.
"""

from typing import NamedTuple

HEAD = 64  # channels of the attention heads that are measured


class Device(NamedTuple):
    """Speeds of a device in one data type."""

    name: str
    matmul: float  # FLOP/s of large matrix products
    attention: float  # FLOP/s of attention without a mask, heads of HEAD channels
    bandwidth: float  # bytes/s of a large copy, read and written ones together
    stream: float  # bytes/s at which a product with one row reads its matrix, as decoding does
    launch: float  # seconds of the host to start an operation, Python and transformers included
    least: float = 0.0  # seconds that the shortest operation takes on the device itself
    is_async: bool = False  # the host starts operations while the device is at earlier ones

    @property
    def per_score(self) -> float:
        """Seconds that attention takes for one weight of its map, on top of the two products."""
        return max(0.0, 4 * HEAD * (1 / self.attention - 1 / self.matmul))


# Of the data sheets' peaks, what large kernels usually reach, and what starting operations usually takes. Assumptions,
# for predictions about devices that are not at hand; limits are calculated from the peaks themselves.
MATMUL_SHARE, ATTENTION_SHARE, BANDWIDTH_SHARE = 0.7, 0.4, 0.85
GPU_LAUNCH, GPU_LEAST = 15e-6, 2e-6


def data_sheet(name: str, tflops: float, gbytes: float) -> Device:
    """Describe a GPU by its peaks: TFLOP/s of bf16 and fp16 products (dense, sums in fp32), and GB/s of its memory."""
    flops, bandwidth = tflops * 1e12, gbytes * 1e9
    return Device(name, flops, flops, bandwidth, bandwidth, GPU_LAUNCH, GPU_LEAST, is_async=True)


DEVICES = {
    device.name: device
    for device in (
        data_sheet("H100", 989.4, 3350),  # SXM, as are H200, A100 and A800
        data_sheet("H200", 989.4, 4800),
        data_sheet("A100", 312, 2039),  # 80 GB
        data_sheet("A800", 312, 2039),  # an A100 with slower links between GPUs
        data_sheet("RTX 4090", 165.2, 1008),
        data_sheet("RTX 3090", 71, 936),
        data_sheet("L40S", 362, 864),
    )
}


def attainable(peak: Device) -> Device:
    """Scale the peaks of a data sheet to the speeds that kernels usually reach."""
    return peak._replace(
        matmul=peak.matmul * MATMUL_SHARE,
        attention=peak.matmul * ATTENTION_SHARE,
        bandwidth=peak.bandwidth * BANDWIDTH_SHARE,
        stream=peak.stream * BANDWIDTH_SHARE,
    )
