import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.preprocess import preprocess
from llava.model.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"
TABLE = json.loads((GOLDEN / "json/train_dataset.json").read_text())
ANYRES = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[[56, 28], [28, 56], [56, 56]])


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GOLDEN / "models/llava-v1.5-tiny")


@pytest.fixture
def make(tmp_path, tokenizer):
    """Makes a dataset of small images: `make(records, config=…)`."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)

    def make(records, **kwargs):
        kwargs = {"image_processor": processor, "image_folder": tmp_path, **kwargs}
        return LazySupervisedDataset(records, tokenizer, conversation=conv_templates["v1"], **kwargs)

    return make


def record(question="<image>\nWhat?", answer="A dog.", **fields) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "a1", "conversations": turns, **fields}


def save(folder: Path, name: str, size=(40, 30), color=0) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color,) * 3).save(folder / name)
    return name


class Cache(dict):
    def __missing__(self, name):
        raise ValueError(f"{name} is not in the cache.")

    def dummy(self):
        return SimpleNamespace(tokens=torch.zeros(1, 1, 8), position=None, size=(1, 1))


@pytest.fixture(scope="module", params=["pad", "square"])
def golden_set(request, tokenizer):
    processor = CLIPImageProcessorPil.from_pretrained(GOLDEN / "models/clip-tiny-336")
    dataset = LazySupervisedDataset(
        TABLE["data"],
        tokenizer,
        conversation=conv_templates["v1"],
        image_folder=GOLDEN / "images",
        image_processor=processor,
        config=SimpleNamespace(image_aspect_ratio=request.param),
    )
    return dataset, list(dataset), TABLE[request.param]


def test_lengths_are_the_golden_ones(golden_set):
    dataset, _, golden = golden_set
    assert len(dataset) == 6
    assert dataset.lengths == golden["lengths"]
    assert dataset.modality_lengths == golden["modality_lengths"]


def test_samples_are_the_golden_ones(golden_set):
    dataset, samples, golden = golden_set
    with_image = 0
    for source, sample, item in zip(TABLE["data"], samples, golden["items"], strict=True):
        assert sample["input_ids"].tolist() == item["input_ids"]
        assert sample["labels"].tolist() == item["labels"]
        assert sample["skipped"] is False
        if "image" not in source:  # LLaVA makes an image of zeros for each, we one for a batch of nothing else
            assert item["image_mean"] == item["image_abs_mean"] == 0
            assert sample["images"] == sample["image_sizes"] == []
            continue
        with_image += 1
        (image,) = sample["images"]
        assert list(image.shape) == item["image_shape"]
        assert image.double().mean().item() == pytest.approx(item["image_mean"], rel=1e-4)
        assert image.double().abs().mean().item() == pytest.approx(item["image_abs_mean"], rel=1e-4)
        assert sample["image_sizes"] == [Image.open(GOLDEN / "images" / source["image"]).size]
    assert with_image == 4
    assert dataset.dummy()["images"][0].shape == (3, 336, 336)
    assert dataset.dummy()["image_sizes"] == [(336, 336)]


def test_the_batch_is_the_golden_one(golden_set):
    dataset, samples, golden = golden_set
    batch = DataCollatorForSupervisedDataset(0, dataset.dummy)(samples)
    for key in ("input_ids", "labels", "attention_mask"):
        assert batch[key].tolist() == golden["collated"][key], key
    assert batch["images"].shape == (4, *golden["collated"]["images_shape"][1:])


def test_nothing_is_opened_before_it_is_asked_for(make):
    asked = []

    class Records(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

        def __iter__(self):
            pytest.fail("all records were looked at")

    dataset = make(Records([record(image="missing/7.jpg", id=7)] * 100))
    assert len(dataset) == 100
    with pytest.raises(ValueError, match=r"Record 7: .*missing/7\.jpg"):
        dataset[7]
    assert asked == [7]


def test_anyres_images_come_in_crops(make, tmp_path):
    sizes = [(20 + 3 * i % 70, 20 + 7 * i % 50) for i in range(200)]
    records = [record(image=save(tmp_path, f"{i}.png", size), id=i) for i, size in enumerate(sizes)]
    dataset = make(records, config=ANYRES)
    samples = list(dataset)
    shapes = {tuple(sample["images"][0].shape) for sample in samples}
    assert shapes == {(3, 3, 28, 28), (5, 3, 28, 28)}  # the base crop and two or four tiles
    assert [sample["image_sizes"] for sample in samples] == [[size] for size in sizes]
    batch = DataCollatorForSupervisedDataset(0, dataset.dummy)(samples)
    assert len(batch["images"]) == len(batch["image_sizes"]) == 200
    assert dataset.dummy()["images"][0].shape == (3, 28, 28)


def test_several_images_in_their_order(make, tmp_path):
    names = [save(tmp_path, f"sub/{i}.png", (40 + i, 30), color=40 * i) for i in range(3)]
    (sample,) = list(make([record("a <image> b <image>, <image>", image=names)]))
    assert sample["image_sizes"] == [(40, 30), (41, 30), (42, 30)]
    means = [image.mean().item() for image in sample["images"]]
    assert means == sorted(means)
    assert (sample["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 3


def test_ids_of_any_type_and_images_anywhere(make, tmp_path):
    image = save(tmp_path, "a.png")
    middle = record("Look <image> here", image=image, id=0)
    begins = record(image=image, id="000033")
    begins["conversations"].insert(0, {"from": "gpt", "value": "Hello."})
    samples = list(make([middle, begins, record("Hi", id=None, image=None)]))
    assert [len(sample["images"]) for sample in samples] == [1, 1, 0]
    assert [(sample["input_ids"] == IMAGE_TOKEN_INDEX).sum() for sample in samples] == [1, 1, 0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record("What?", image="a.png", id=5), r"Record 5: .*<image> 0 times, but it has 1 images \['a\.png'\]\."),
        (record("<image> <image>", image=["a.png"]), "'a1': .*2 times, but it has 1 images"),
        (record("<image>", id="t"), "Record 't': .*1 times, but it has 0 images"),
        (record(answer="", image="a.png"), "Record 'a1': 2 turns, but after a question gpt says nothing"),
        ({"id": 3}, "Record 3: the conversation is .*None"),
    ],
)
def test_a_record_that_cannot_be_learnt_from_is_named(broken, message, make):
    for skip_bad in (False, True):  # is no matter of one image
        with pytest.raises(ValueError, match=message):
            make([broken], skip_bad=skip_bad)[0]


@pytest.mark.parametrize("content", [b"", b"no image", None, "thin"])
def test_a_bad_image_is_named_or_skipped(content, make, tmp_path, tokenizer):
    if content == "thin":
        save(tmp_path, "bad.png", size=(60_000, 1))
    elif content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    bad = record(image="bad.png", id="b7")
    config = SimpleNamespace(image_aspect_ratio="pad")
    with pytest.raises(ValueError, match=r"Record 'b7': .*(bad\.png|60000x1)"):
        make([bad], config=config)[0]

    sample = make([bad], config=config, skip_bad=True)[0]
    assert sample["skipped"] is True
    assert sample["images"] == sample["image_sizes"] == []
    assert set(sample["labels"].tolist()) == {IGNORE_INDEX}
    whole = preprocess(bad["conversations"], tokenizer, conv_templates["v1"], has_image=True).input_ids
    assert sample["input_ids"].tolist() == [i for i in whole.tolist() if i != IMAGE_TOKEN_INDEX]


@pytest.mark.parametrize("skip_bad", [True, False])
def test_a_medium_that_cannot_be_seen_is_never_learnt_as_text(make, skip_bad):
    for fields, kind in (({"video": "a.mp4"}, "video"), ({"images": ["a.png"]}, "images elsewhere")):
        with pytest.raises(ValueError, match=f"Record 'a1': it brings {kind}: "):
            make([record("Why?", **fields)], skip_bad=skip_bad)[0]


def test_a_config_without_a_grid_is_no_bad_image(make):
    with pytest.raises(ValueError, match="needs image_grid_pinpoints"):
        make([record(image="a.png")], config=SimpleNamespace(image_aspect_ratio="anyres"), skip_bad=True)


def test_image_marks_are_written_as_the_config_says(make, tmp_path, tokenizer):
    save(tmp_path, "a.png")
    config = SimpleNamespace(mm_use_im_start_end=True)
    (sample,) = list(make([record(image="a.png")], config=config))
    assert "<im_start>" in tokenizer.decode([i for i in sample["input_ids"].tolist() if i >= 0])


def test_long_texts_are_cut(make, tmp_path):
    save(tmp_path, "a.png")
    text, shown = list(make([record("Hi " * 90), record("<image>" + "Hi " * 90, image="a.png")], max_length=60))
    assert len(text["input_ids"]) == len(text["labels"]) == 60
    assert len(shown["input_ids"]) > 90  # the model cuts this one, when it knows how long the image is


@pytest.mark.parametrize("position", [None, torch.arange(5)[None]])
def test_a_cache_takes_the_place_of_pixels(make, position):
    entry = SimpleNamespace(tokens=torch.randn(1, 5, 8), position=position, size=(40, 30))
    records = [record(image="x/a.png"), record("Hi"), record(image="b.png", id=9)]
    dataset = make(records, cache=Cache({"x/a.png": entry}), image_processor=None, skip_bad=True)
    shown, text, bad = dataset
    assert shown["vision_tokens"] == [entry.tokens]
    assert len(shown["vision_positions"]) == (position is not None)
    assert shown["image_sizes"] == [(40, 30)]
    assert "images" not in shown
    assert text["vision_tokens"] == bad["vision_tokens"] == []
    assert [sample["skipped"] for sample in (shown, text, bad)] == [False, False, True]

    batch = DataCollatorForSupervisedDataset(0, dataset.dummy)([text, bad])
    assert batch["vision_tokens"][0].shape == (1, 1, 8)
    assert batch["image_sizes"] == [(1, 1)]
