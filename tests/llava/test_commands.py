"""The console command: a list of verbs that costs nothing, and each verb runs as its module does."""

import json
import subprocess
import sys

import pytest

from llava.commands import VERBS, main
from llava.perf import cost

HEAVY = ("torch", "transformers", "numpy", "PIL")


def test_the_list_of_verbs_is_light():
    script = (
        "import json, sys\n"
        "from llava.commands import main\n"
        "status = main(['--help'])\n"
        f"print(json.dumps([status, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    assert json.loads(last) == [0, []]
    assert all(any(line.startswith(f"  {name} ") for line in shown) for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_shows_its_options_under_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: visionzip {name}")


def test_an_unknown_verb_is_refused_with_the_nearest(capsys):
    assert main(["evla", "textvqa"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("visionzip: there is no verb 'evla'. Did you mean eval?\n")
    assert all(name in said for name in VERBS)
    assert main(["xyz"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_nothing_asked_for_is_a_list(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: visionzip VERB")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("visionzip ")


def test_arguments_and_status_are_those_of_the_verb(monkeypatch, capsys):
    assert main(["cost", "--model", "tiny", "--dominant", "6", "--contextual", "1"]) == 0
    assert "tiny in bfloat16 on H100" in capsys.readouterr().out
    assert main(["cost", "--model", "nothing"]) == 2
    monkeypatch.setattr(sys, "argv", ["visionzip", "cost", "--model", "tiny"])
    assert main() == 0


def test_a_module_by_itself_has_its_own_name(capsys):
    with pytest.raises(SystemExit):
        cost.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m llava.perf.cost")


@pytest.mark.parametrize("budget", [[], ["--dominant", "6", "--contextual", "1"], ["--tokens-per-image", "7"]])
def test_one_question(budget, capsys):
    """The embedded model reads its sign."""
    assert main(["ask", "what number is on the black sign?", *budget]) == 0
    assert capsys.readouterr().out == "52\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["  "], "The question is empty"),
        (["Why?", "nowhere.png"], "nowhere.png"),
        (["Why?", "--dominant", "5"], "--dominant and --contextual go together"),
        (["Why?", "--model", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["ask", *arguments]) == 2
    assert said in capsys.readouterr().err
