"""Devices: what is known of them, and what measuring finds."""

import pytest
import torch

from llava.perf import measure
from llava.perf.devices import DEVICES, HEAD, Device, attainable
from llava.perf.measure import measure_device, median_seconds

CPU = torch.device("cpu")
PLAUSIBLE = (1e8, 1e15)  # operations or bytes per second of anything that runs a test


def test_data_sheets_become_expectations():
    for name, peak in DEVICES.items():
        expected = attainable(peak)
        assert expected.name == peak.name == name
        assert peak.per_score == 0
        assert expected.attention < expected.matmul < peak.matmul
        assert expected.stream == expected.bandwidth < peak.bandwidth
    assert DEVICES["H100"].matmul == 989.4e12
    assert DEVICES["H200"].bandwidth / DEVICES["H100"].bandwidth == pytest.approx(4.8 / 3.35)


def test_attention_takes_its_products_and_a_part_per_weight():
    device = Device("made up", matmul=100e9, attention=40e9, bandwidth=1, stream=1, launch=0)
    scores = 1e6
    flops = 4 * HEAD * scores
    assert flops / device.matmul + scores * device.per_score == pytest.approx(flops / device.attention)
    assert device._replace(attention=200e9).per_score == 0  # never faster than its products


def test_time_is_the_median_of_calls_after_warm_up(clock):
    watch, pauses = clock("llava.perf.measure"), iter([0.05, 0.05, 0.001, 0.003, 0.05])
    assert median_seconds(lambda: watch.sleep(next(pauses)), CPU, rounds=3) == pytest.approx(0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_speeds_are_operations_and_bytes_by_seconds(clock, dtype):
    clock("llava.perf.measure", tick=0.25)  # what every call takes
    assert measure.measure_matmul(CPU, dtype, 128) == pytest.approx(4 * 2 * 128**3)
    assert measure.measure_attention(CPU, dtype, 1) == pytest.approx(4 * 4 * 16 * 577**2 * 64)
    matrix = 512 * 512 * dtype.itemsize
    assert measure.measure_memory(CPU, dtype, 512) == pytest.approx((4 * 2 * matrix, 4 * matrix))


@torch.inference_mode()
def test_what_is_not_arithmetic_is_the_starts_of_operations(clock):
    clock("llava.perf.measure", tick=0.25)
    fast = Device("made up", 1e30, 1e30, 1e30, 1e30, 0.0)
    launch = measure.measure_launch(fast, CPU, torch.float32)
    assert 50 < 0.25 / launch < 5000  # operations of a step of 24 layers
    halved = measure.measure_launch(fast._replace(matmul=1e9), CPU, torch.float32)
    assert 0 < halved < launch
    crawling = measure.measure_launch(fast._replace(matmul=1e6), CPU, torch.float32)
    assert crawling == 0  # all of its time is arithmetic


def check(device: Device) -> None:
    low, high = PLAUSIBLE
    assert all(low < speed < high for speed in (device.matmul, device.attention, device.bandwidth, device.stream))
    assert device.launch >= 0


@pytest.mark.slow
def test_a_cpu_is_measured():
    found = measure_device(CPU, torch.float32)
    check(found)
    assert found.name.startswith("CPU, threads: ")
    assert (found.least, found.is_async) == (0, False)


@pytest.mark.gpu
def test_a_gpu_is_measured():
    found = measure_device(torch.device("cuda"), torch.bfloat16)
    check(found)
    assert found.is_async
    assert found.launch > 1e-7
    assert 1e-7 < found.least < 1e-4
