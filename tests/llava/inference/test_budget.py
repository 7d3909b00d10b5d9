"""All commands mean the same by the options of a budget."""

import argparse
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llava.eval import model_vqa_loader, run, run_llava
from llava.inference import budget
from llava.inference.budget import budget_of, choose_budget, counts_per_crop, require_possible, usual_budget
from llava.perf import cost
from llava.serve import cli, demo
from llava.train import arguments
from llava.train import bench as train_bench
from llava.visualize import __main__ as visualize
from visionzip_patch import VisionZipConfig
from visionzip_patch.selectors import SELECTORS

TOWER = SimpleNamespace(
    num_patches=64,
    has_cls=True,
    gives=frozenset({"saliency", "keys"}),
    reducer=None,
    config=SimpleNamespace(image_size=56),
)
CONFIG = SimpleNamespace(image_aspect_ratio="pad")

NEEDED = ["--model-path", "m", "--image-file", "i", "--query", "q"]
COMMANDS = {
    "run": lambda words: run.parse_arguments(["textvqa", *words]),
    "model_vqa_loader": model_vqa_loader.parse_arguments,
    "cost": cost.parse_arguments,
    "chat": cli.parse_arguments,
    "demo": demo.parse_arguments,
    "visualize": lambda words: visualize.parse_arguments(["image.png", *words]),
    "run_llava": lambda words: run_llava.parse_arguments([*NEEDED, *words]),
    "train.bench": train_bench.parse_arguments,
}
CALCULATIONS = {"cost", "train.bench"}  # by the number of tokens, however they are chosen
CHOOSING = sorted(COMMANDS.keys() - CALCULATIONS)
MEANING = {
    "--dominant 27 --contextual 5": VisionZipConfig(27, 5),
    "--dominant 27 --contextual 0": VisionZipConfig(27, 0),
    "--tokens-per-image 160": VisionZipConfig(tokens_per_image=160),
    "": None,
}
REFUSED = {
    "--dominant 27": "go together; got 27 and None. With --dominant 27, --contextual 5 is usual",
    "--contextual 20": "go together; got None and 20. With --contextual 20, --dominant 108 is usual",
    "--contextual 0": "With --contextual 0, --dominant 54 is usual",
    "--tokens-per-image 160 --dominant 27": "replaces --dominant and --contextual: give one or the other",
}


@pytest.mark.parametrize("words", MEANING)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_the_same_budget(command, words):
    assert budget_of(COMMANDS[command](words.split())) == MEANING[words]


CHOICES = {
    "--selector random": {"selector": "random"},
    "--selector random --selector-seed 3": {"selector": "random", "seed": 3},
    "--selector uniform --merge mean": {"selector": "uniform", "merge": "mean"},
}


@pytest.mark.parametrize("words", CHOICES)
@pytest.mark.parametrize("command", CHOOSING)
def test_every_command_reads_the_same_selector(command, words):
    alone = COMMANDS[command](words.split())
    assert budget_of(alone, VisionZipConfig(6, 1)) == VisionZipConfig(6, 1, **CHOICES[words])
    both = COMMANDS[command](["--dominant", "27", "--contextual", "5", *words.split()])
    assert budget_of(both, VisionZipConfig(6, 1)) == VisionZipConfig(27, 5, **CHOICES[words])
    with pytest.raises(ValueError, match=r"--(merge|selector) needs a budget: add --dominant and --contextual, or"):
        budget_of(alone)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_unknown_selector(command, capsys):
    with pytest.raises(SystemExit) as refused:
        COMMANDS[command](["--dominant", "27", "--contextual", "5", "--selector", "best"])
    assert refused.value.code == 2
    message = "unrecognized arguments" if command in CALCULATIONS else ", ".join(map(repr, SELECTORS))
    assert message.replace("'", "") in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_half_a_budget_and_two(command, words):
    with pytest.raises(ValueError, match=re.escape(REFUSED[words])):
        budget_of(COMMANDS[command](words.split()))


@pytest.mark.parametrize("words", ["--dominant 0", "--dominant x", "--contextual -1", "--tokens-per-image 0"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_impossible_numbers_by_name(command, words, capsys):
    with pytest.raises(SystemExit) as refused:
        COMMANDS[command](words.split())
    assert refused.value.code == 2
    assert f"argument {words.split()[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("main", [cost.main, train_bench.main])
def test_half_a_budget_ends_a_calculation_with_status_2(main, capsys):
    assert main(["--dominant", "54"]) == 2
    assert "With --dominant 54, --contextual 10 is usual" in capsys.readouterr().err


def test_training_refuses_it_in_its_own_spelling():
    with pytest.raises(ValueError, match="--dominant and --contextual go together; got 54 and None"):
        arguments.ModelArguments(dominant=54)
    with pytest.raises(ValueError, match="--tokens_per_image replaces --dominant and --contextual"):
        arguments.ModelArguments(dominant=54, contextual=10, tokens_per_image=64)


def asked(**options) -> argparse.Namespace:
    return argparse.Namespace(**{"dominant": None, "contextual": None, "tokens_per_image": None, **options})


def test_merge_alone_changes_the_budget_that_holds():
    assert budget_of(asked(merge="mean"), VisionZipConfig(6, 1)) == VisionZipConfig(6, 1, merge="mean")
    assert budget_of(asked(merge=None), VisionZipConfig(6, 1, merge="mean")) == VisionZipConfig(6, 1, merge="mean")
    with pytest.raises(ValueError, match="--merge needs a budget: add --dominant and --contextual, or"):
        budget_of(asked(merge="mean"))


def test_a_seed_belongs_to_a_selector_that_draws():
    random = VisionZipConfig(6, 1, selector="random")
    assert budget_of(asked(selector_seed=3), random) == VisionZipConfig(6, 1, selector="random", seed=3)
    with pytest.raises(ValueError, match=r"--selector-seed 3: the selector visionzip draws nothing. .*: random"):
        budget_of(asked(selector_seed=3), VisionZipConfig(6, 1))
    with pytest.raises(ValueError, match="--selector-seed needs a budget"):
        budget_of(asked(selector_seed=3))


def test_the_names_of_selectors_cost_no_torch():
    code = "import sys, llava.inference.budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_calculation_counts_tokens_of_a_crop():
    assert counts_per_crop(asked(), (54, 10), crops=5, available=577) == (54, 10)
    assert counts_per_crop(asked(dominant=27, contextual=5), (54, 10), crops=5, available=577) == (27, 5)
    assert counts_per_crop(asked(tokens_per_image=160), (54, 10), crops=5, available=577) == (27, 5)
    with pytest.raises(ValueError, match="asks for 610 tokens, but the vision tower gives 577"):
        counts_per_crop(asked(dominant=600, contextual=10), (54, 10), crops=5, available=577)


def test_a_command_with_a_picture_prefers_what_was_asked_then_what_is_carried_then_the_usual():
    carrying = SimpleNamespace(**{**vars(TOWER), "reducer": SimpleNamespace(config=VisionZipConfig(9, 2))})
    assert choose_budget(asked(dominant=5, contextual=0), CONFIG, carrying) == VisionZipConfig(5, 0)
    assert choose_budget(asked(), CONFIG, carrying) == VisionZipConfig(9, 2)
    assert choose_budget(asked(), CONFIG, TOWER) == VisionZipConfig(6, 1)
    assert choose_budget(asked(), CONFIG, TOWER, usual=False) is None
    assert choose_budget(asked(), CONFIG, carrying, usual=False) == VisionZipConfig(9, 2)
    for usual in (True, False):
        with pytest.raises(ValueError, match="asks for 70 tokens"):
            choose_budget(asked(dominant=60, contextual=10), CONFIG, carrying, usual=usual)


@pytest.mark.parametrize(
    ("patches", "ninths", "expected"),
    [(576, 1, (54, 10)), (576, 2, (108, 20)), (576, 3, (162, 30)), (64, 1, (6, 1)), (256, 1, (24, 4)), (4, 1, (1, 0))],
)
def test_the_usual_budget_is_a_ninth_of_the_patches(patches, ninths, expected):
    for has_cls in (True, False):
        tower = SimpleNamespace(num_patches=patches, has_cls=has_cls)
        assert usual_budget(tower, ninths) == VisionZipConfig(*expected)


def test_a_budget_is_held_against_the_largest_image():
    anyres = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[[56, 112], [112, 112]])
    assert budget.most_crops(anyres, TOWER) == 5
    require_possible(VisionZipConfig(tokens_per_image=160), anyres, TOWER)
    with pytest.raises(ValueError, match="cannot be split over 5 crops"):
        require_possible(VisionZipConfig(tokens_per_image=4), anyres, TOWER)
    with pytest.raises(ValueError, match="no image has more than 64 tokens without VisionZip"):
        require_possible(VisionZipConfig(tokens_per_image=64), CONFIG, TOWER)
    with pytest.raises(ValueError, match="asks for 66 tokens, but the vision tower gives 65"):
        require_possible(VisionZipConfig(60, 6), CONFIG, TOWER)
