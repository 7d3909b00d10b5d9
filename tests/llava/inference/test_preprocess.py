"""Images come in order and in time, whoever prepares them, and one that cannot be used harms no other."""

import multiprocessing
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import SequentialSampler

from llava.inference.preprocess import WORTH_A_WORKER, Picture, free_workers, lost_workers, read_picture, read_pictures
from llava.mm_utils import load_image, process_images

PAD = SimpleNamespace(image_aspect_ratio="pad")
ANYRES = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[[336, 672], [672, 336]])


@pytest.fixture(scope="module")
def image_processor(loaded):
    return loaded[2]


@pytest.fixture
def files(tmp_path):
    """Makes images, no two alike: `files(3)` -> their names in `tmp_path`."""

    def make(count: int) -> list[str]:
        names = [f"{i}.png" for i in range(count)]
        for i, name in enumerate(names):
            noise = np.random.default_rng(i).integers(0, 256, (20 + i, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name)
        return names

    return make


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("config", [PAD, ANYRES], ids=["pad", "anyres"])
def test_pixels_are_those_of_each_image_by_itself(files, tmp_path, image_processor, config, workers):
    names = files(6)
    found = list(read_pictures(names, tmp_path, image_processor, config, workers))
    images = [load_image(tmp_path / name) for name in names]
    assert [picture.size for picture in found] == [image.size for image in images]
    for picture, image in zip(found, images, strict=True):
        assert torch.equal(picture.pixels, process_images([image], image_processor, config)[0])
        assert picture.pixels.ndim == (3 if config is PAD else 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_used_is_named_and_the_others_go_on(files, tmp_path, image_processor, workers):
    good = files(3)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:-300])
    (tmp_path / "folder.png").mkdir()
    Image.new("L", (60_000, 1)).save(tmp_path / "line.png")
    names = ["text.png", good[0], "missing.png", "cut.png", good[1], "folder.png", "line.png", good[2]]
    found = list(read_pictures(names, tmp_path, image_processor, PAD, workers))
    for name, picture in zip(names, found, strict=True):
        if name in good:
            assert torch.equal(picture.pixels, read_picture(tmp_path / name, image_processor, PAD).pixels)
        else:
            assert picture.startswith(f"{tmp_path / name}: ")
            with pytest.raises(ValueError, match=f"^{re.escape(picture)}$"):
                read_picture(tmp_path / name, image_processor, PAD)


@pytest.fixture
def given(monkeypatch):
    """The images that workers were given to read, by their place, as the main process draws them."""
    draw, places = SequentialSampler.__iter__, []

    def drawing(self):
        for place in draw(self):
            places.append(place)
            yield place

    monkeypatch.setattr(SequentialSampler, "__iter__", drawing)
    return places


@pytest.mark.parametrize(("workers", "most"), [(0, 1), (2, 9)])  # images: the first one, and a batch ahead of it
def test_few_are_read_before_they_are_asked_for(files, tmp_path, image_processor, given, workers, most):
    names = files(30)
    pictures = read_pictures(names, tmp_path, image_processor, PAD, workers, batch_size=8)
    found = [next(pictures)]
    count = len(given)
    for name in names[count:]:
        (tmp_path / name).unlink()
    found += pictures
    assert 1 <= count <= most
    assert [isinstance(picture, Picture) for picture in found] == [True] * count + [False] * (30 - count)


def test_workers_end_with_their_reader(files, tmp_path, image_processor):
    before = set(multiprocessing.active_children())
    pictures = read_pictures(files(10), tmp_path, image_processor, PAD, 2)
    next(pictures)
    assert len(set(multiprocessing.active_children()) - before) == 2
    pictures.close()
    assert set(multiprocessing.active_children()) <= before


def test_workers_take_the_cores_that_are_free(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu, gpu, many = torch.device("cpu"), torch.device("cuda"), 100 * WORTH_A_WORKER
    assert (free_workers(cpu, many), free_workers(gpu, many)) == (4, 6)
    assert [free_workers(gpu, images) for images in (0, WORTH_A_WORKER - 1, 3 * WORTH_A_WORKER)] == [0, 0, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (free_workers(cpu, many), free_workers(gpu, many)) == (0, 1)
    monkeypatch.setattr("os.cpu_count", lambda: 256)
    assert free_workers(gpu, many) == 8


def test_no_images_are_no_work(tmp_path, image_processor):
    assert list(read_pictures([], tmp_path, image_processor, PAD)) == []


def test_a_lost_worker_is_explained():
    with pytest.raises(ValueError, match="was killed, usually for lack of memory"), lost_workers():
        raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="other"), lost_workers():
        raise RuntimeError("other")


def test_workers_outlive_neither_the_main_process_nor_leave_before_it(files, tmp_path):
    """Ctrl-C reaches them too, and they wait for what the main process decides."""
    names = files(40)
    program = (
        "import os, signal, sys, time, multiprocessing\n"
        "from types import SimpleNamespace\n"
        "from llava.inference.preprocess import read_pictures\n"
        "from transformers import CLIPImageProcessorPil\n"
        f"pictures = read_pictures({names!r}, {str(tmp_path)!r}, CLIPImageProcessorPil(),"
        " SimpleNamespace(image_aspect_ratio='pad'), 2)\n"
        "next(pictures)\n"
        "workers = multiprocessing.active_children()\n"
        "for worker in workers: os.kill(worker.pid, signal.SIGINT)\n"
        "time.sleep(0.3)\n"
        "print(*(worker.pid for worker in workers if worker.is_alive()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    if sys.platform == "linux":
        while any(is_running(pid) for pid in pids):  # not for long: they have closed the pipe that was read to its end
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
