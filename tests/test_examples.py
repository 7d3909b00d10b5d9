"""Each example runs as it is, on the embedded model or a small one, and prints what it promises."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
ZIPPED = r"before: 64 visual tokens, 'sale'\nzipped: 7 visual tokens, 'sale'\nundone: 64 visual tokens, 'sale'\n"
PRINTED = {
    "zip_in_place": ZIPPED + r"The image is what it was, bit for bit: True\n",
    "compare_budgets": r"tokens +ms +answers\n +64 +[\d.]+  sale, 52, 2\n +21 +[\d.]+  sale, 52, 2\n"
    r" +7 +[\d.]+  sale, 52, 2\n +3 +[\d.]+  [^\n]+\n",
    "save_and_load": r"saved: 7 visual tokens, 'sale'\n(?:.*WARNING.*\n)*loaded: 7 visual tokens, 'sale'\n"
    r"loaded with another budget: 4 visual tokens, 'sale'\n",
    "chat_session": r"what word is on the green sign\? sale  \((\d+) tokens computed, 0 reused, \d+ ms\)\n"
    r"what number is on the black sign\? 52  \(\d\d tokens computed, \1 reused, \d+ ms\)\n"
    r"what word is on the green sign\? sale  \(\d+ tokens computed, 33 reused, \d+ ms\)\n",
}


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.delitem(sys.modules, "_common", raising=False)  # it reads the arguments
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        sys.modules.pop("_common", None)


def test_all_examples_are_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*PRINTED, "transformers_llava", "_common"}


@pytest.mark.parametrize("name", PRINTED)
def test_it_prints_what_it_promises(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # from any place
    run(name, monkeypatch)
    assert re.fullmatch(PRINTED[name], capsys.readouterr().out)


@pytest.fixture
def transformers_folder(tmp_path) -> str:
    """A small random LLaVA of transformers' class with a tower of 8 x 8 patches, and its processor."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(FOLDER.parent / "playground/checkpoints/llava-signs")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 112, "patch_size": 14, **size},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **size},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    side = CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=112)
    layout = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(side, tokenizer, **layout).save_pretrained(tmp_path)
    return str(tmp_path)


def test_transformers_own_class(capsys, monkeypatch, transformers_folder):
    run("transformers_llava", monkeypatch, transformers_folder, "6", "1")
    before, zipped, undone = capsys.readouterr().out.splitlines()
    assert before.startswith("before: 64 visual tokens, ")
    assert zipped.startswith("zipped: 7 visual tokens, ")
    assert undone == before.replace("before", "undone")


def test_transformers_own_class_must_be_named(monkeypatch):
    with pytest.raises(SystemExit, match="HUB_ID"):
        run("transformers_llava", monkeypatch)


@pytest.mark.slow
def test_a_checkout_will_do(tmp_path):
    """Nothing is installed, and no path is set."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(FOLDER / "zip_in_place.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(PRINTED["zip_in_place"], done.stdout)
