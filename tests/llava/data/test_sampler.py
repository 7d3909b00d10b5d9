import json
import random
from pathlib import Path

import pytest
import torch

from llava.data.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)

TABLE = json.loads((Path(__file__).parents[2] / "golden/json/length_grouped_sampler.json").read_text())
CASES = TABLE["cases"]
TEXT_ONLY = [case for case in CASES if max(case["lengths"]) < 0]
MIXED = [case for case in CASES if min(case["lengths"]) < 0 < max(case["lengths"])]


def arguments(case: dict) -> tuple:
    return case["lengths"], case["batch_size"], case["world_size"]


def test_the_table_has_all_kinds():
    assert (len(MIXED), len(TEXT_ONLY), len(CASES)) == (4, 1, 6)


@pytest.mark.parametrize("case", TABLE["split_to_even_chunks"])
def test_chunks(case):
    assert split_to_even_chunks(case["indices"], case["lengths"], case["num_chunks"]) == case["chunks"]


@pytest.mark.parametrize("case", CASES)
def test_the_global_generator_gives_the_golden_order(case):
    lengths, *sizes = arguments(case)
    torch.manual_seed(case["global_seed"])
    assert get_length_grouped_indices(list(map(abs, lengths)), *sizes) == case["length_grouped_of_abs"]
    torch.manual_seed(case["global_seed"])
    order = get_modality_length_grouped_indices(lengths, *sizes)
    assert order == case["length_grouped_of_abs" if case in TEXT_ONLY else "modality_grouped"]
    sampler = LengthGroupedSampler(*sizes[:2], lengths, group_by_modality=True, seed=case["global_seed"])
    assert list(sampler) == order
    assert len(sampler) == len(order)
    if case not in TEXT_ONLY:
        assert order == case["sampler"]


def test_text_alone_is_sorted_by_its_true_length():
    # LLaVA sorts negative lengths: its batches begin with the shortest, where all others begin with the longest.
    (case,) = TEXT_ONLY
    size = case["batch_size"]
    torch.manual_seed(case["global_seed"])
    for order, descends in (
        (get_modality_length_grouped_indices(*arguments(case)), True),
        (case["modality_grouped"], False),
    ):
        words = [-case["lengths"][i] for i in order]
        batches = [words[start : start + size] for start in range(0, len(words), size)]
        assert batches == [sorted(batch, reverse=descends) for batch in batches]


@pytest.mark.parametrize("case", MIXED)
def test_a_given_generator_draws_everything(case):
    # In LLaVA it draws only the order of the megabatches, so a seeded epoch depended on what was drawn before it.
    def order(global_seed):
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(case["with_generator"]["generator_seed"])
        return get_modality_length_grouped_indices(*arguments(case), generator)

    assert case["with_generator"]["generator_seed"] == case["global_seed"]
    assert order(1) == order(2) == case["modality_grouped"] != case["with_generator"]["modality_grouped"]


def test_every_sample_once_in_batches_of_one_modality():
    rng = random.Random(0)
    lengths = [rng.randint(1, 300) * rng.choice((1, 1, 1, -1)) for _ in range(1003)]
    order = get_modality_length_grouped_indices(lengths, 4, 2, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(1003))
    megabatches = [order[start : start + 8] for start in range(0, 1003, 8)]
    mixed = [i for i, batch in enumerate(megabatches) if len({lengths[k] > 0 for k in batch}) == 2]
    assert all(i >= len(megabatches) - 2 for i in mixed)


def test_the_order_follows_from_seed_and_epoch():
    def order(epoch, **kwargs):
        sampler = LengthGroupedSampler(2, 2, list(range(1, 100)), **kwargs)
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch + 7)
        return list(sampler)

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3) != order(3, seed=9)
    sampler = LengthGroupedSampler(2, 2, list(range(1, 100)))
    assert list(sampler) == list(sampler)


@pytest.mark.slow
def test_all_of_mix665k_is_put_in_order():
    rng = random.Random(0)
    lengths = [rng.randint(1, 600) * (1 if rng.random() < 0.94 else -1) for _ in range(665_298)]
    order = list(LengthGroupedSampler(16, 8, lengths, group_by_modality=True))
    assert len(set(order)) == len(lengths)
