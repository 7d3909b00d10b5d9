"""Helpers for servers written for LLaVA: a logger, a semaphore in words, and what is refused."""

import asyncio
import logging
import sys

import pytest

from llava import utils


@pytest.fixture
def log(monkeypatch, tmp_path):
    monkeypatch.setattr(utils, "LOGDIR", str(tmp_path))
    yield utils.build_logger("a-worker", "worker.log")
    logger = logging.getLogger("a-worker")
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)


def test_a_logger_writes_to_its_file_once(log, tmp_path):
    streams = sys.stdout, sys.stderr
    assert utils.build_logger("a-worker", "worker.log") is log
    log.info("hello")
    log.debug("not this")
    (line,) = (tmp_path / "worker.log").read_text().splitlines()
    assert line.endswith("| INFO | a-worker | hello")
    assert (sys.stdout, sys.stderr) == streams


def test_a_semaphore_in_words():
    assert utils.pretty_print_semaphore(None) == "None"
    assert utils.pretty_print_semaphore(asyncio.Semaphore(2)) == "Semaphore(value=2, locked=False)"


def test_the_first_process_prints(monkeypatch, capsys):
    utils.rank0_print("one", 2, sep="-")
    monkeypatch.setenv("RANK", "1")
    utils.rank0_print("nothing")
    assert capsys.readouterr().out == "one-2\n"


def test_moderation_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="violates_moderation"):
        utils.violates_moderation("a text")
