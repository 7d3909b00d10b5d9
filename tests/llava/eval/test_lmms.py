"""lmms-eval with this package: its own LLaVA unmodified, and ours as a plug-in, on a local task.

python3 -m venv LMMS && LMMS/bin/pip install torch==2.13.0 && LMMS/bin/pip install -c constraints.txt -e .
LMMS/bin/pip install --no-deps lmms-eval==0.7.3   # and of its requirements, without torchvision, what it asks for
LMMS_PYTHON=LMMS/bin/python bash scripts/test.sh -m slow tests/llava/eval/test_lmms.py
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from visionzip_patch import VisionZipConfig

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "playground/checkpoints/llava-signs"
QUESTIONS = 60

MAKE = """
import json, sys
from datasets import Dataset, Image
root, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
questions = [json.loads(line) for line in open(f"{root}/llava_textvqa_val_v051_ocr.jsonl")][:count]
truths = json.load(open(f"{root}/TextVQA_0.5.1_val.json"))["data"]
known = {(truth["image_id"], truth["question"]): truth["answers"][0] for truth in truths}
rows = [
    {"image": f"{root}/train_images/{q['image']}", "question": q["text"],
     "answer": known[q["question_id"], q["text"].splitlines()[0]]}
    for q in questions
]
Dataset.from_list(rows).cast_column("image", Image()).to_parquet(out)
"""
TASK = """
task: signs
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: !function utils.target
process_results: !function utils.results
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
def visual(doc): return [doc["image"].convert("RGB")]
def text(doc, kwargs=None): return doc["question"]
def target(doc): return doc["answer"]
def results(doc, said): return {"exact": float(said[0].strip().lower() == doc["answer"])}
"""


@pytest.fixture(scope="module")
def lmms(tmp_path_factory):
    """Runs lmms-eval on the task: model, its arguments, batch size -> accuracy."""
    python = os.environ.get("LMMS_PYTHON")
    if not python:
        pytest.skip("LMMS_PYTHON is not set: the Python of an environment with lmms-eval and this package")
    folder = tmp_path_factory.mktemp("lmms")
    task = folder / "task"
    task.mkdir()
    data = folder / "signs.parquet"
    make = [python, "-c", MAKE, str(ROOT / "playground/data/eval/signs"), str(data), str(QUESTIONS)]
    subprocess.run(make, check=True, capture_output=True)
    (task / "signs.yaml").write_text(TASK.format(data=data))
    (task / "utils.py").write_text(UTILS)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "HF_HOME": str(folder / "cache")}

    def run(model: str, arguments: str, batch_size: int) -> float:
        out = folder / f"{model}-{batch_size}-{len(list(folder.iterdir()))}"
        command = [python, "-m", "lmms_eval", "--model", model, "--model_args", f"pretrained={CHECKPOINT},{arguments}"]
        command += ["--tasks", "signs", "--include_path", str(task), "--batch_size", str(batch_size)]
        done = subprocess.run([*command, "--output_path", str(out)], cwd=folder, env=environment, capture_output=True)
        (path,) = list(out.rglob("*_results.json")) or pytest.fail(done.stderr.decode()[-2000:])
        return json.loads(path.read_text())["results"]["signs"]["exact,none"]

    return run


@pytest.mark.slow
def test_our_plug_in_and_its_own_llava_agree(lmms):
    own = lmms("llava", "device_map=auto,device=cpu", 1)
    assert own > 0.8
    assert lmms("llava_visionzip", "device=cpu", 1) == lmms("llava_visionzip", "device=cpu", 16) == own
    zipped = lmms("llava_visionzip", "dominant=2,contextual=0,device=cpu", 16)
    assert zipped < own - 0.05
    assert lmms("llava_visionzip", "dominant=2,contextual=0,device=cpu,fast=off", 7) == zipped


@pytest.fixture
def plug_in(monkeypatch, tiny_llava, llama_3):
    """The plug-in with stand-ins for lmms-eval and for the loader, whose options it notes: (class, options)."""
    api = {"instance": SimpleNamespace(Instance=object), "model": SimpleNamespace(lmms=object)}
    for name, module in {"": SimpleNamespace(), ".api": SimpleNamespace()}.items():
        monkeypatch.setitem(sys.modules, f"lmms_eval{name}", module)
    for name, module in api.items():
        monkeypatch.setitem(sys.modules, f"lmms_eval.api.{name}", module)
    monkeypatch.delitem(sys.modules, "llava.eval.lmms_model", raising=False)
    found = importlib.import_module("llava.eval.lmms_model")
    monkeypatch.delitem(sys.modules, "llava.eval.lmms_model")  # made with a stand-in: nobody else's
    loaded = []
    load = lambda *_, **options: loaded.append(options) or (llama_3, tiny_llava(), None, None)  # noqa: E731
    monkeypatch.setattr(found, "load_pretrained_model", load)
    return found.LlavaVisionZip, loaded


def test_half_a_budget_is_refused_in_its_spelling_before_anything_is_loaded(plug_in):
    make, loaded = plug_in
    make("checkpoint", dominant="27", contextual=5, device="cpu")
    make("checkpoint", device="cpu")
    assert [options["visionzip"] for options in loaded] == [VisionZipConfig(27, 5), None]
    make("checkpoint", dominant=27, contextual=5, selector="random", selector_seed="3", merge="mean", device="cpu")
    assert loaded.pop()["visionzip"] == VisionZipConfig(27, 5, merge="mean", selector="random", seed=3)
    with pytest.raises(ValueError, match=r"^selector='best' is unknown; choose one of visionzip, random"):
        make("checkpoint", dominant=27, contextual=5, selector="best", device="cpu")
    with pytest.raises(ValueError, match=r"^dominant and contextual go together; got 27 and None\. With dominant 27"):
        make("checkpoint", dominant=27, device="cpu")
    assert len(loaded) == 2


def test_the_template_is_the_checkpoints_or_the_one_asked_for_by_a_known_name(plug_in):
    make, _ = plug_in
    assert make("checkpoint", device="cpu").conv_template == "llava_llama_3"
    assert make("checkpoint", conv_template="v0", device="cpu").conv_template == "v0"
    with pytest.raises(ValueError, match=r"^conv_template vicuna is unknown; choose one of .*vicuna_v1"):
        make("checkpoint", conv_template="vicuna", device="cpu")
