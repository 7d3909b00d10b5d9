import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from llava.data import subset
from llava.data.records import read_records, source_of
from llava.data.subset import apportion, draw


def records_of(sizes):
    """`sizes` records of each source, shuffled, with ids of two types."""
    sources = [source for source, size in sizes.items() for _ in range(size)]
    generator = random.Random(0)
    sources.sort(key=lambda _: generator.random())
    turns = [{"from": "human", "value": "Wo läge 京都?"}, {"from": "gpt", "value": "Dort."}]
    return [
        {"id": i if i % 3 else str(i), "source": source, "conversations": turns, "extra": {"x": [i]}}
        for i, source in enumerate(sources)
    ]


SIZES = {"a": 157, "b": 41, "c": 83, "d": 9}
RECORDS = records_of(SIZES)


def test_every_source_gives_its_share():
    drawn = draw(RECORDS, 0.1)
    assert drawn == sorted(set(drawn))
    shares = Counter(RECORDS[i]["source"] for i in drawn)
    # 29 of 290: 15.7, 4.1, 8.3 and 0.9, so the two left over go to d and a
    assert shares == {"a": 16, "b": 4, "c": 8, "d": 1}


@pytest.mark.parametrize("fraction", [0.004, 0.05, 0.1, 1 / 3, 0.5, 0.999, 1])
def test_the_total_is_exact(fraction):
    assert len(draw(RECORDS, fraction)) == round(fraction * len(RECORDS))


def test_any_count_can_be_asked_for_as_a_fraction():
    assert [len(draw(RECORDS, n / len(RECORDS))) for n in range(1, 291)] == list(range(1, 291))


def test_all_of_it_is_all_of_it():
    assert draw(RECORDS, 1.0) == list(range(len(RECORDS)))


def test_a_seed_draws_the_same_in_every_process_and_another_seed_others():
    code = (
        "import runpy; from llava.data.subset import draw;"
        f"print(draw(runpy.run_path({__file__!r})['RECORDS'], 0.1, seed=3))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{draw(RECORDS, 0.1, seed=3)}\n"}
    assert draw(RECORDS, 0.1, seed=3) != draw(RECORDS, 0.1, seed=4)


def test_what_is_drawn_never_changes():
    few = records_of({"a": 12, "b": 8})
    assert draw(few, 0.25) == [2, 3, 11, 12, 15]


def test_a_larger_part_contains_the_smaller():
    even = records_of({"a": 100, "b": 40})
    assert set(draw(even, 0.05)) < set(draw(even, 0.1)) < set(draw(even, 0.5))


def test_the_draw_reaches_every_record():
    seen = set().union(*(draw(RECORDS, 0.5, seed) for seed in range(20)))
    assert len(seen) == len(RECORDS)


def test_ties_go_by_name_whatever_the_order():
    assert apportion({"b": 1, "a": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}
    assert apportion({"c": 1, "b": 1, "a": 1}, 2) == {"a": 1, "b": 1, "c": 0}


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_fractions_that_cannot_be_drawn(fraction):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        draw(RECORDS, fraction)


def test_a_fraction_of_no_record():
    with pytest.raises(ValueError, match=r"0.001 of 290 records is less than one"):
        draw(RECORDS, 0.001)


def test_records_that_training_refuses_can_be_drawn():
    assert draw([{"conversations": None}, {"image": 7}, {"image": [None], "conversations": [3]}], 1) == [0, 1, 2]


@pytest.fixture
def source_file(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps(RECORDS, indent=2, ensure_ascii=False), "utf-8")
    return path


def test_the_command(source_file, tmp_path, capsys):
    out = tmp_path / "new/out.json"
    assert subset.main([str(source_file), str(out), "--fraction", "0.1", "--seed", "5"]) == 0
    assert read_records(out) == [RECORDS[i] for i in draw(RECORDS, 0.1, seed=5)]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "157", "16"] in lines
    assert ["total", "290", "29"] in lines
    assert ["without", "image", "290", "29"] in lines
    assert lines.index(["a", "157", "16"]) < lines.index(["c", "83", "8"]) < lines.index(["d", "9", "1"])


def test_the_command_with_a_count_and_jsonl(source_file, tmp_path):
    assert subset.main([str(source_file), str(tmp_path / "out.jsonl"), "--count", "7"]) == 0
    assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 7
    assert len({source_of(one) for one in read_records(tmp_path / "out.jsonl")}) == 3


def test_a_file_that_is_there_is_replaced_only_on_demand(source_file, tmp_path, capsys):
    out = tmp_path / "out.json"
    out.write_text("mine")
    command = [str(source_file), str(out), "--fraction", "0.1"]
    assert subset.main(command) == 2
    assert out.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert subset.main([*command, "--overwrite"]) == 0
    assert len(read_records(out)) == 29


def test_the_file_that_is_read_is_not_replaced_on_demand_either(source_file, tmp_path, capsys):
    content = source_file.read_bytes()
    link = tmp_path / "link.json"
    link.symlink_to(source_file)
    for output in (source_file, link):
        assert subset.main([str(source_file), str(output), "--fraction", "0.1", "--overwrite"]) == 2
        assert f"{output} would be written over, and {source_file} is read" in capsys.readouterr().err
    assert source_file.read_bytes() == content


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fraction", "0.001"], "less than one of them"),
        (["--count", "291"], "holds only 290 records"),
    ],
)
def test_requests_that_cannot_be_met(source_file, tmp_path, capsys, flags, message):
    assert subset.main([str(source_file), str(tmp_path / "out.json"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("flags", [[], ["--fraction", "0.1", "--count", "3"], ["--count", "0"]])
def test_a_size_is_asked_for_once(source_file, tmp_path, flags):
    with pytest.raises(SystemExit) as error:
        subset.main([str(source_file), str(tmp_path / "out.json"), *flags])
    assert error.value.code == 2
