"""A warning is said once, whatever repeats its cause."""

import logging

import pytest
import torch

from visionzip_patch import VisionZipConfig, unzip
from visionzip_patch.api import attach
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)


def test_a_message_is_said_once(caplog, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for _ in range(3):
        warn_once(logger, "%s is odd", 3)
    warn_once(logger, "%s is odd", 5)
    assert caplog.messages == ["3 is odd", "5 is odd"]


@pytest.mark.parametrize(
    ("rank", "heard"), [(None, ["of all", "of one"]), ("0", ["of all", "of one"]), ("3", ["of one"])]
)
def test_of_several_processes_the_first_one_speaks(rank, heard, monkeypatch, caplog):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    for _ in range(2):
        warn_once(logger, "of all")
        warn_once(logger, "of one", everywhere=True)
    assert caplog.messages == heard


def test_what_it_is_about_may_stay_while_numbers_change(caplog):
    for count in range(3):
        warn_once(logger, "%d of %d", count, 7, about=7)
    assert caplog.messages == ["0 of 7"]


def test_a_budget_that_saves_nothing_is_said_once(tiny_llava, caplog):
    model = tiny_llava()
    tower = model.get_vision_tower()
    for _ in range(3):
        attach(model, VisionZipConfig(tower.num_patches, 1))
        unzip(model)
    assert len(caplog.messages) == 1


def test_a_prompt_that_is_cut_in_every_batch_is_said_once(tiny_llava, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # the first process has other prompts
    model = tiny_llava()
    model.config.tokenizer_model_max_length = 4
    for length in (6, 7, 8):
        model(input_ids=torch.ones(1, length, dtype=torch.long), images=torch.zeros(1, 3, 56, 56))
    assert caplog.messages == ["2 tokens of a prompt were cut off: tokenizer_model_max_length is 4."]
