"""The feature cache: equal to the tower, never stale, whole or resumed."""

import json
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from llava.constants import IMAGE_TOKEN_INDEX
from llava.encode import build as building
from llava.encode.build import build_cache
from llava.encode.store import FeatureCache, cache_key, open_cache
from llava.inference.preprocess import read_picture
from visionzip_patch import unzip, visionzip

NAMES = [f"{'ab'[i % 2]}/image{i}.png" for i in range(7)]
ANYRES = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    "mm_patch_merge_type": "spatial_unpad",
}


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (40 + 9 * number, 130 - 11 * number, 3)  # wide to high
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def model(tiny_llava):
    return visionzip(tiny_llava(image_aspect_ratio="pad"), dominant=4, contextual=2)


@pytest.fixture
def build(tmp_path, images, model):
    """Build the cache of NAMES by small shards; what is passed comes in place of the defaults."""

    def run(names=NAMES, model=model, folder=tmp_path / "cache", **options):
        options = {"batch_size": 2, "num_workers": 0, "images_per_shard": 3, "progress": None, **options}
        return build_cache(folder, names, images, model, processor_of(model), **options)

    return run


def processor_of(model):
    return model.get_vision_tower().image_processor


def key_of(model) -> dict:
    return cache_key(model, processor_of(model))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def contents(cache: FeatureCache) -> dict:
    return {name: (cache[name].tokens.tolist(), cache[name].size) for name in NAMES if name in cache}


def counting_tower(model, monkeypatch, *, fail_after: int | None = None) -> list[int]:
    """The numbers of images the tower is given from now on; it fails once `fail_after` have been given."""
    tower, seen = model.get_vision_tower(), []
    original = tower.features_of

    def features_of(pictures):
        if fail_after is not None and sum(seen) >= fail_after:
            raise KeyboardInterrupt
        seen.append(len(pictures))
        return original(pictures)

    monkeypatch.setattr(tower, "features_of", features_of)
    return seen


SETTINGS = {
    "zipped": ({"image_aspect_ratio": "pad"}, {"dominant": 4, "contextual": 2}),
    "whole": ({"image_aspect_ratio": "pad"}, None),
    "anyres": (ANYRES, {"dominant": 4, "contextual": 2}),
    "anyres, budget per image": (ANYRES, {"tokens_per_image": 20}),
    "anyres, whole": (ANYRES, None),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_cached_tokens_are_what_the_tower_gives(setting, tiny_llava, build, images, tmp_path):
    config, budget = SETTINGS[setting]
    model = tiny_llava(**config)
    if budget:
        visionzip(model, **budget)
    assert build(model=model, batch_size=1) == {}
    cache = open_cache(tmp_path / "cache", key_of(model))
    assert len(cache) == len(NAMES)
    assert len(shards(tmp_path / "cache")) == 3

    tower, counts = model.get_vision_tower(), set()
    for name in NAMES:
        pixels, size = read_picture(images / name, processor_of(model), model.config)
        crops = pixels if pixels.ndim == 4 else pixels[None]
        (expected,), cached = tower.features_of([crops]), cache[name]
        assert torch.equal(cached.tokens, expected.tokens)
        assert cached.tokens.dtype == expected.tokens.dtype
        assert cached.size == size == Image.open(images / name).size
        assert (cached.position is None) == (budget is None)
        if budget:
            assert torch.equal(cached.position, expected.position)
        counts.add(cached.tokens.shape[:2])

        ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 7, 8]])
        with torch.no_grad():
            plain = model(ids, images=[pixels], image_sizes=[size]).logits
            positions = None if cached.position is None else [cached.position]
            from_cache = model(ids, vision_tokens=[cached.tokens], vision_positions=positions, image_sizes=[size])
        assert torch.equal(from_cache.logits, plain)
    assert len(counts) == (2 if config is ANYRES else 1)  # images of different numbers of crops were among them


def test_in_batches_the_tokens_are_the_same_up_to_rounding(model, build, images, tmp_path):
    build(batch_size=4, images_per_shard=100)
    cache = open_cache(tmp_path / "cache", key_of(model))
    assert len(shards(tmp_path / "cache")) == 1
    for name in NAMES:
        pixels = read_picture(images / name, processor_of(model), model.config).pixels
        (expected,) = model.get_vision_tower().features_of([pixels[None]])
        torch.testing.assert_close(cache[name].tokens, expected.tokens, rtol=1e-5, atol=1e-5)
        assert torch.equal(cache[name].position, expected.position)


def test_half_precision_is_stored_as_it_is(model, build, tmp_path):
    model.get_vision_tower().to(torch.bfloat16)
    build()
    cache = open_cache(tmp_path / "cache", key_of(model))
    assert cache[NAMES[0]].tokens.dtype == cache.dummy().tokens.dtype == torch.bfloat16


def test_the_dummy_is_shaped_as_an_image(model, build, tmp_path):
    build()
    dummy = open_cache(tmp_path / "cache", key_of(model)).dummy()
    assert (dummy.tokens.shape, dummy.position.tolist(), dummy.size) == ((1, 1, 32), [[0]], (1, 1))
    unzip(model)
    build([], folder=tmp_path / "whole")
    cache = open_cache(tmp_path / "whole", key_of(model))
    assert len(cache) == 0
    assert cache.dummy().position is None


def test_only_what_is_missing_is_computed(model, build, tmp_path, monkeypatch):
    seen = counting_tower(model, monkeypatch)
    build([*NAMES[:3], NAMES[0]])
    assert sum(seen) == 3
    build()
    assert sum(seen) == 7
    build()
    assert sum(seen) == 7
    assert json.loads((tmp_path / "cache/key.json").read_text()) == key_of(model)


def test_a_killed_build_keeps_finished_shards(model, build, tmp_path, monkeypatch):
    build(folder=tmp_path / "uninterrupted")
    with monkeypatch.context() as patch:
        counting_tower(model, patch, fail_after=5)
        with pytest.raises(KeyboardInterrupt):
            build(batch_size=1)
    kept = shards(tmp_path / "cache")
    assert len(kept) == 1
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {kept[0].name, "key.json"}
    stamp = kept[0].stat().st_mtime_ns

    seen = counting_tower(model, monkeypatch)
    build()
    assert sum(seen) == 4
    assert kept[0].stat().st_mtime_ns == stamp
    resumed, whole = (open_cache(tmp_path / name, key_of(model)) for name in ("cache", "uninterrupted"))
    assert resumed.places.keys() == whole.places.keys() == set(NAMES)
    for name in NAMES:
        torch.testing.assert_close(resumed[name].tokens, whole[name].tokens, rtol=1e-5, atol=1e-5)


def test_drafts_of_killed_builds_go_and_young_ones_stay(build, tmp_path):
    build(NAMES[:1])
    old, young = (tmp_path / "cache" / f".features-{name}.safetensors.1" for name in ("old", "young"))
    for draft in (old, young):
        draft.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    build()
    assert (old.exists(), young.exists()) == (False, True)


def test_processes_share_the_work(model, build, tmp_path, monkeypatch):
    build(folder=tmp_path / "alone", batch_size=1)
    seen = counting_tower(model, monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("1", 3), ("0", 4)):
        monkeypatch.setenv("RANK", rank)
        build(batch_size=1)
        assert sum(seen) == expected
        seen.clear()
    key = key_of(model)
    assert contents(open_cache(tmp_path / "cache", key)) == contents(open_cache(tmp_path / "alone", key))


def other_value(value):
    return {} if value is None else [value] if not isinstance(value, int) else value + 1


def test_a_stale_cache_is_refused_whatever_field_differs(model, build, tmp_path):
    build(NAMES[:1])
    key = key_of(model)
    assert len(key) == 11
    for field, value in key.items():
        names = list(value) if isinstance(value, dict) else [None]
        for name in names:
            old = value if name is None else value[name]
            changed = other_value(old)
            other = {**key, field: changed if name is None else {**value, name: changed}}
            dotted = field if name is None or field == "tower_weights" else f"{field}.{name}"
            with pytest.raises(ValueError, match="are stale") as refused:
                open_cache(tmp_path / "cache", other)
            assert dotted in str(refused.value)
            assert "Choose another folder" in str(refused.value)


def change_weight(model):
    model.get_vision_tower().vision_tower.encoder.layers[0].mlp.fc1.bias.data[3] += 1e-3


def change_dtype(model):
    model.get_vision_tower().to(torch.float16)


def change_processor(model):
    processor_of(model).image_mean = [0.5, 0.5, 0.5]


CHANGES = {
    "tower_weights": change_weight,
    "dtype was 'float32', now it is 'float16'": change_dtype,
    "select_layer was -2, now it is -1": lambda model: setattr(model.get_vision_tower(), "select_layer", -1),
    "select_feature": lambda model: setattr(model.get_vision_tower(), "select_feature", "cls_patch"),
    "visionzip.dominant was 4, now it is 5": lambda model: visionzip(model, dominant=5, contextual=2),
    "visionzip was {'dominant': 4, .*}, now it is None": unzip,
    "image_aspect_ratio was 'pad', now it is 'square'": lambda m: setattr(m.config, "image_aspect_ratio", "square"),
    "image_processor.image_mean was": change_processor,
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_changed_model_finds_its_cache_stale(message, model, build, tmp_path):
    model.get_vision_tower().image_processor = pickle.loads(pickle.dumps(processor_of(model)))
    build(NAMES[:1])
    before = [path.read_bytes() for path in shards(tmp_path / "cache")]
    CHANGES[message](model)
    with pytest.raises(ValueError, match=message):
        build()
    with pytest.raises(ValueError, match=message):
        open_cache(tmp_path / "cache", key_of(model))
    assert [path.read_bytes() for path in shards(tmp_path / "cache")] == before


def test_a_grid_of_tiles_is_part_of_the_key_only_if_there_are_tiles(tiny_llava):
    plain, tiled = tiny_llava(image_aspect_ratio="pad"), tiny_llava(**ANYRES)
    pairs = []
    for model in (plain, tiled):
        before = key_of(model)
        model.config.image_grid_pinpoints = "[(112, 112)]"
        pairs.append((before, key_of(model)))
    assert pairs[0][0] == pairs[0][1]
    assert pairs[1][0] != pairs[1][1]


def test_equal_weights_have_equal_keys(tiny_llava):
    first, second = tiny_llava(), tiny_llava()
    assert first is not second
    assert key_of(first) == key_of(second)


@pytest.mark.parametrize("how", ["touched", "resized"])
def test_an_image_that_changed_is_refused(how, build, images, model, tmp_path):
    build()
    path = images / NAMES[4]
    if how == "touched":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    else:
        stat = path.stat()
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(0, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=rf"1 images have changed .* {NAMES[4]} first .*Delete features-") as refused:
        build()
    named = [shard for shard in shards(tmp_path / "cache") if shard.name in str(refused.value)]
    assert len(named) == 1
    named[0].unlink()
    assert build() == {}
    assert len(open_cache(tmp_path / "cache", key_of(model))) == len(NAMES)


def test_a_cached_image_needs_no_file(build, images):
    build()
    (images / NAMES[0]).unlink()
    assert build() == {}


@pytest.mark.parametrize("damage", ["cut in its header", "cut in its data", "empty", "no key"])
def test_a_damaged_shard_is_named(damage, build, model, tmp_path):
    build()
    shard = shards(tmp_path / "cache")[1]
    content = shard.read_bytes()
    length = {"cut in its header": 100, "cut in its data": len(content) - 1, "empty": 0}
    if damage == "no key":
        from safetensors.torch import save_file

        save_file({"tokens": torch.zeros(1)}, shard)
    else:
        shard.write_bytes(content[: length[damage]])
    for attempt in (build, lambda: open_cache(tmp_path / "cache", key_of(model))):
        with pytest.raises(ValueError, match=f"{shard.name} is damaged .*Delete it and run again"):
            attempt()
    shard.unlink()
    build()
    assert len(open_cache(tmp_path / "cache", key_of(model))) == len(NAMES)


def test_other_files_in_the_folder_are_let_alone(build, model, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/model.safetensors").write_bytes(b"somebody's")
    build()
    assert len(open_cache(tmp_path / "cache", key_of(model))) == len(NAMES)
    assert (tmp_path / "cache/model.safetensors").read_bytes() == b"somebody's"


def test_a_bad_image_is_named_or_left_out(build, model, images, tmp_path, caplog):
    (images / NAMES[2]).write_bytes(b"no image")
    (images / NAMES[5]).unlink()
    with pytest.raises(ValueError, match=f"{NAMES[2]}: not an image"):
        build()
    bad = build(skip_bad=True, batch_size=1)
    assert list(bad) == [NAMES[2], NAMES[5]]
    assert "No such file" in bad[NAMES[5]]
    assert "2 images are left out" in caplog.text
    cache = open_cache(tmp_path / "cache", key_of(model))
    assert set(cache.places) == set(NAMES) - set(bad)
    with pytest.raises(ValueError, match=f"{NAMES[2]} is not among the 5 images"):
        cache[NAMES[2]]


def test_no_folder_is_no_cache(tmp_path, model):
    with pytest.raises(ValueError, match="no folder with cached features"):
        open_cache(tmp_path / "cache", key_of(model))


def test_the_size_is_told_beforehand(build, caplog, monkeypatch):
    monkeypatch.setattr(building.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    with caplog.at_level(logging.INFO, logger=building.__name__):
        build()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.args[:2] == (7, 7 * (6 * 32 * 4) / 1e9)  # images x tokens x C x bytes

    monkeypatch.setattr(building.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    build([NAMES[0], "../" + f"images/{NAMES[1]}"])
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_large_shard_ends_early(build, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_BYTES", 2 * 6 * 32 * 4)
    build(images_per_shard=1000)
    assert len(shards(tmp_path / "cache")) == 4


def test_a_full_disk_is_told_and_finished_shards_stay(build, model, tmp_path):
    """With a limit on the size of files in place of a full disk: the write fails in its middle, as there."""
    build(NAMES[:3])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.raises(ValueError, match=r"cannot be written \(File too large\): .* free. Make room and run again"):
            build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "cache").glob(".*"))
    assert set(open_cache(tmp_path / "cache", key_of(model)).places) == set(NAMES[:3])


class Images(Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(NAMES)

    def __getitem__(self, index):
        return self.cache[NAMES[index]], len(self.cache._shards)


def first(batch):
    return batch[0]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_it_themselves(method, build, model, tmp_path):
    build(batch_size=1)
    cache = open_cache(tmp_path / "cache", key_of(model))
    expected = contents(cache)
    assert len(cache._shards) == 3
    unopened = pickle.loads(pickle.dumps(cache))
    loader = DataLoader(Images(unopened), num_workers=2, collate_fn=first, multiprocessing_context=method)
    read, opened = zip(*loader, strict=True)
    assert {name: (i.tokens.tolist(), i.size) for name, i in zip(NAMES, read, strict=True)} == expected
    assert all(image.tokens.untyped_storage().nbytes() == image.tokens.nbytes for image in read)
    assert opened[:2] == (1, 1)  # each worker has its own
    assert not unopened._shards


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from llava.model.builder import load_pretrained_model
from llava.encode.build import build_cache
from visionzip_patch import visionzip

_, model, processor, _ = load_pretrained_model({checkpoint!r}, device="cpu")
visionzip(model, dominant=4, contextual=2)
tower, left = model.get_vision_tower(), {images}
original = tower.features_of
def features_of(pictures):
    global left
    left -= len(pictures)
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(pictures)
tower.features_of = features_of
build_cache({folder!r}, {names!r}, {image_folder!r}, model, processor, batch_size=1, images_per_shard=2)
"""


@pytest.mark.slow
def test_sigkill_at_any_image_and_again_until_done(golden, images, tmp_path):
    from llava.model.builder import load_pretrained_model

    checkpoint, cache = str(golden / "models/llava-v1.5-tiny"), tmp_path / "cache"
    values = {"root": str(Path(building.__file__).parents[2]), "checkpoint": checkpoint, "folder": str(cache)}
    ends, held = [], []
    model, processor = load_pretrained_model(checkpoint, device="cpu")[1:3]
    key = cache_key(visionzip(model, dominant=4, contextual=2), processor)
    for _ in range(4):
        source = KILLED.format(**values, names=NAMES, image_folder=str(images), images=3)
        ends.append(subprocess.run([sys.executable, "-c", source], capture_output=True).returncode)
        held.append(len(open_cache(cache, key)))
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert held == [2, 4, 7, 7]
