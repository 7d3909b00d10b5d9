"""Devices: what is known of them, and what measuring finds."""

import time

import pytest
import torch

from llava.eval import devices
from llava.eval.devices import DEVICES, HEAD, Device, attainable, measure_device, seconds_of

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


def test_time_is_the_median_of_calls_after_warm_up():
    pauses = iter([0.05, 0.05, 0.001, 0.003, 0.05])
    assert 0.003 <= seconds_of(lambda: time.sleep(next(pauses)), CPU, rounds=3) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_measured(dtype):
    low, high = PLAUSIBLE
    assert low < devices.measure_matmul(CPU, dtype, 128) < high
    assert low < devices.measure_attention(CPU, dtype, 1) < high
    assert all(low < speed < high for speed in devices.measure_memory(CPU, dtype, 512))


def test_starts_of_operations_are_measured():
    speeds = Device("made up", 1e11, 1e11, 1e11, 1e11, 0.0)
    with torch.inference_mode():
        assert 1e-7 < devices.measure_launch(speeds, CPU, torch.float32) < 1e-3
        crawling = speeds._replace(matmul=1e6)
        assert devices.measure_launch(crawling, CPU, torch.float32) == 0  # all of its time is arithmetic


def check(device: Device) -> None:
    low, high = PLAUSIBLE
    assert all(low < speed < high for speed in (device.matmul, device.attention, device.bandwidth, device.stream))
    assert 1e-7 < device.launch < 1e-3


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
    assert 1e-7 < found.least < 1e-4
