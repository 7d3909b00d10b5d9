import torch

from llava.constants import IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset


def sample(*ids: int, images: int = 0, shape=(3, 4, 4), **fields) -> dict:
    labels = torch.tensor([IGNORE_INDEX, *ids[1:]])
    pixels, sizes = [torch.randn(shape) for _ in range(images)], [(8, 6)] * images
    seen = {"images": pixels, "image_sizes": sizes}
    return {"input_ids": torch.tensor(ids), "labels": labels, **seen, "skipped": False, **fields}


def described(*ids: int, images: int = 0, positions: bool = True) -> dict:
    """A sample with features from a cache."""
    seen = {"vision_tokens": [torch.randn(1, 5, 6) for _ in range(images)]}
    seen["vision_positions"] = [torch.arange(5)[None] for _ in range(images * positions)]
    return {**sample(*ids), **seen, "images": [], "image_sizes": [(8, 6)] * images}


def dummy() -> dict:
    return {"images": [torch.zeros(3, 4, 4)], "image_sizes": [(4, 4)]}


def test_rows_are_filled_up_on_the_right():
    batch = DataCollatorForSupervisedDataset(0, None)([sample(1, 5, 0), sample(1, 6, 7, 8, 9)])
    assert list(batch) == ["input_ids", "labels", "attention_mask", "skipped"]
    assert batch["input_ids"].tolist() == [[1, 5, 0, 0, 0], [1, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 5, 0, -100, -100], [-100, 6, 7, 8, 9]]
    # A text may hold the id that padding has, as <unk> in LLaMA; it is seen all the same.
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]


def test_images_of_one_shape_are_stacked():
    samples = [sample(1, images=2), sample(1), sample(1, images=1)]
    batch = DataCollatorForSupervisedDataset(0, dummy)(samples)
    assert batch["images"].shape == (3, 3, 4, 4)
    assert torch.equal(batch["images"][2], samples[2]["images"][0])
    assert batch["image_sizes"] == [(8, 6)] * 3


def test_crops_and_other_shapes_stay_a_list():
    for shapes in [((5, 3, 4, 4), (3, 3, 4, 4)), ((5, 3, 4, 4),) * 2, ((3, 4, 4), (3, 4, 6))]:
        batch = DataCollatorForSupervisedDataset(0, dummy)([sample(1, images=1, shape=shape) for shape in shapes])
        assert [image.shape for image in batch["images"]] == list(shapes)


def test_a_batch_without_images_gets_one_dummy():
    batch = DataCollatorForSupervisedDataset(0, dummy)([sample(1), sample(1)])
    assert batch["images"].shape == (1, 3, 4, 4)
    assert not batch["images"].any()
    assert batch["image_sizes"] == [(4, 4)]


def test_cached_features_take_the_place_of_images():
    collate = DataCollatorForSupervisedDataset(0, dummy)
    batch = collate([described(1, images=1), described(1), described(1, images=2)])
    assert "images" not in batch
    assert (len(batch["vision_tokens"]), len(batch["vision_positions"]), len(batch["image_sizes"])) == (3, 3, 3)
    assert "vision_positions" not in collate([described(1, images=1, positions=False)])


def test_skipped_samples_are_counted():
    collate = DataCollatorForSupervisedDataset(0, dummy)
    assert collate([sample(1, skipped=True), sample(1, images=1), sample(1, skipped=True)])["skipped"] == 2
    assert collate([sample(1)])["skipped"] == 0
