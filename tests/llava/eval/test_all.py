"""All benchmarks from one command: what is there runs, what cannot is named, and the rest goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_files import MAKERS

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "playground/checkpoints/llava-signs"


def run_all(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = ["bash", ROOT / "scripts/eval/all.sh", *options]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NPROC": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_benchmark_that_cannot_run_stops_no_other(tmp_path):
    for name in ("pope", "gqa", "mmmu"):
        MAKERS[name](tmp_path / "playground/data/eval")
    next((tmp_path / "playground/data/eval/pope/val2014").iterdir()).unlink()
    done = run_all(tmp_path, str(CHECKPOINT), "--budgets", "full,6+1", "--device", "cpu", "--max-new-tokens", "2")
    assert done.returncode == 2
    assert "1 missing" in done.stderr
    assert "without scores, for the reasons above: pope" in done.stderr
    table = done.stdout[done.stdout.rindex("## llava-signs") :]
    assert table.splitlines()[2].split() == ["|", "|", "tokens", "|", "gqa", "|", "mmmu", "|", "average", "%", "|"]
    assert (tmp_path / "playground/results/report.csv").exists()


@pytest.mark.slow
def test_a_wrong_flag_is_said_once(tmp_path):
    done = run_all(tmp_path, "--flag", "full")
    assert done.returncode == 2
    assert done.stderr.count("unrecognized arguments: --flag") == 1


@pytest.mark.parametrize("count", ["0", "00", "-1", "two"])
def test_a_number_of_processes_that_is_none(count):
    script = "source scripts/env.sh; PY=echo; launch llava.eval.run"
    environment = {**os.environ, "NPROC": count}
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"NPROC={count} is no number of processes. Give 1 or more" in done.stderr
