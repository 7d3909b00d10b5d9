"""The shell entries: help, errors, and how they come to a Python. A stand-in plays Python, so nothing is installed."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.sh") if not path.name.endswith("env.sh"))
IDS = [str(path.relative_to(ROOT)) for path in SCRIPTS]
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "mv", "paste", "rm", "sed", "sleep", "sort", "tr")

# Plays a Python 3 that has no packages (or those that CHECK says it has), and writes down what is asked of it.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *check_env.py*)
    [[ -n ${CHECK_TEXT:-} ]] && echo "$CHECK_TEXT"
    exit "${CHECK_STATUS:-0}" ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python" ;;
  *"-m pip "*)
    echo "pip ${*#*-m pip }" >>"$LOG"
    while [[ -e ${HOLD:-} ]]; do sleep 0.02; done
    exit "${PIP_STATUS:-0}" ;;
  "-m "*) echo "run $*" >>"$LOG" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
MISSING, OUTSIDE = "3", "4"  # exit statuses of check_env.py


class Sandbox:
    """A copy of what the scripts need, in a folder with a space, and a PATH that holds a stand-in and a few tools."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.log = folder / "my project", folder / "bin", folder / "log"
        self.venv, self.python, self.hold = self.root / ".venv", self.bin / "python3", folder / "hold"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "scripts" / "show.sh").write_text(
            'set -euo pipefail\nsource "${BASH_SOURCE[0]%/*}/env.sh"\nsetup_env "$@"\necho "$PY"\n'
        )
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        env = {"PATH": str(self.bin), "LOG": str(self.log), "REAL_PYTHON": sys.executable, "CHECK_STATUS": MISSING}
        command = ["bash", str(self.root / "scripts" / script), *arguments]
        return subprocess.Popen(
            command,
            cwd=self.root.parent,
            env=env | variables,
            stdout=-1,
            stderr=-1,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def start_and_hold_pip(self, script: str) -> subprocess.Popen:
        """Until `self.hold` is removed."""
        self.hold.touch()
        process = self.start(script, HOLD=str(self.hold))
        while not self.log.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        return process

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run_until_it_waits(self, script: str) -> subprocess.CompletedProcess:
        """Release pip as soon as the script says that it waits for another."""
        process = self.start(script)
        assert "waiting for another script" in process.stderr.readline()
        self.hold.unlink()
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def logged(self) -> list[str]:
        """What was asked of the stand-in since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_help_needs_no_environment(script, tmp_path):
    done = subprocess.run(
        ["bash", script, "--help"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"bash {script.relative_to(ROOT)}" in done.stdout
    assert "#" not in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("script", ["scripts/test.sh", "scripts/eval/textvqa.sh"])
def test_an_unknown_option_is_named(script):
    done = subprocess.run(
        ["bash", ROOT / script, "--no-such-option"],
        env=os.environ | {"PYTHON": sys.executable, "NPROC": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr


def test_shellcheck():
    program = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed; the dev extra has it")
    files = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").glob("*env.sh")), *SCRIPTS]
    done = subprocess.run([program, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_takes_a_python_on_path_that_has_everything(sandbox):
    done = sandbox.run("show.sh", CHECK_STATUS="0")
    assert done.stdout == f"{sandbox.python}\n"
    assert not sandbox.venv.exists()
    assert sandbox.logged() == []


def test_makes_a_venv_once(sandbox):
    done = sandbox.run("show.sh", "dev")
    assert done.stdout == f"{sandbox.venv}/bin/python\n"
    torch, project = sandbox.logged()
    assert torch.endswith(" torch==2.13.0")
    assert project.endswith(f" -e {sandbox.root}[dev]")
    assert f"-c {sandbox.venv}/constraints.txt" in project

    assert sandbox.run("show.sh", "dev").stdout == done.stdout
    assert sandbox.run("show.sh").stdout == done.stdout  # needs less than there is
    assert sandbox.logged() == []


def test_brings_a_venv_up_to_date(sandbox):
    sandbox.run("show.sh", "dev")
    (sandbox.venv / "kept").touch()
    sandbox.logged()

    sandbox.run("show.sh", "train")
    assert sandbox.logged()[-1].endswith("[dev,train]")
    assert sandbox.run("show.sh", "dev").returncode == 0
    assert sandbox.logged() == []

    with (sandbox.root / "constraints.txt").open("a") as file:
        file.write("six==1.17.0\n")
    sandbox.run("show.sh")
    assert sandbox.logged()[-1].endswith("[dev,train]")
    assert (sandbox.venv / "kept").exists()


def test_makes_a_half_made_venv_again(sandbox):
    failed = sandbox.run("show.sh", PIP_STATUS="1")
    assert failed.returncode != 0
    assert not failed.stdout
    assert "pip could not install torch==2.13.0" in failed.stderr
    assert "PYTHON" in failed.stderr
    assert len(sandbox.logged()) == 1
    (sandbox.venv / "left over").touch()

    done = sandbox.run("show.sh")
    assert done.returncode == 0
    assert "cut off" in done.stderr
    assert len(sandbox.logged()) == 2
    assert not (sandbox.venv / "left over").exists()


def test_makes_a_killed_venv_again(sandbox):
    process = sandbox.start_and_hold_pip("show.sh")
    process.kill()
    process.wait()
    sandbox.logged()

    done = sandbox.run_until_it_waits("show.sh")  # for the orphaned pip, which still holds the lock
    process.communicate()
    assert done.returncode == 0
    assert "cut off" in done.stderr
    assert len(sandbox.logged()) == 2


def test_two_at_once_set_up_one_venv(sandbox):
    first = sandbox.start_and_hold_pip("show.sh")
    second = sandbox.run_until_it_waits("show.sh")
    first.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(sandbox.logged()) == 2  # torch and the project, once


def test_leaves_a_venv_of_the_user_alone(sandbox):
    sandbox.venv.mkdir()
    (sandbox.venv / "mine").touch()
    done = sandbox.run("show.sh")
    assert done.returncode != 0
    assert "was not made by this script" in done.stderr
    assert (sandbox.venv / "mine").exists()
    assert sandbox.logged() == []


def test_torch_spec_takes_the_place_of_the_pin_and_stays(sandbox):
    spec = "torch==2.12.0 --index-url https://example.org/whl"
    assert sandbox.run("show.sh", TORCH_SPEC=spec).returncode == 0
    torch, _ = sandbox.logged()
    assert torch.endswith(f" {spec}")
    assert "torch==" not in (sandbox.venv / "constraints.txt").read_text()

    assert sandbox.run("show.sh", "dev").returncode == 0
    assert sandbox.logged()[0].endswith(f" {spec}")


def test_says_when_there_is_no_python(sandbox):
    sandbox.python.unlink()
    done = sandbox.run("show.sh")
    assert done.returncode != 0
    assert "no Python >= 3.10 with the venv module on PATH" in done.stderr
    assert not sandbox.venv.exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYTHON": "no-such-python"}, "PYTHON=no-such-python is no program"),
        ({"PYTHON": "python3", "CHECK_TEXT": "torch is missing"}, "cannot run the project: torch is missing."),
    ],
)
def test_a_given_python_that_cannot_do_it_is_an_error(sandbox, variables, message):
    done = sandbox.run("show.sh", **variables)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not sandbox.venv.exists()


def test_a_given_python_with_untested_versions_is_used(sandbox):
    done = sandbox.run("show.sh", PYTHON="bin/python3", CHECK_STATUS=OUTSIDE, CHECK_TEXT="torch 3.0 is outside <2.14")
    assert done.stdout == f"{sandbox.root.parent}/bin/python3\n"
    assert "torch 3.0 is outside <2.14" in done.stderr


@pytest.mark.parametrize(
    ("variables", "module"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "-m"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "-m"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "-m llava.utils.launch --standalone --nproc_per_node 2 -m"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "NPROC": "1"}, "-m"),
        ({"NPROC": "4"}, "-m llava.utils.launch --standalone --nproc_per_node 4 -m"),
    ],
)
def test_one_process_per_gpu(sandbox, variables, module):
    done = sandbox.run("eval/textvqa.sh", "a model", "--dominant", "54", CHECK_STATUS="0", **variables)
    assert done.returncode == 0, done.stderr
    assert sandbox.logged() == [f"run {module} llava.eval.run textvqa a model --dominant 54"]


def test_a_wrong_number_of_processes_is_an_error(sandbox):
    done = sandbox.run("eval/textvqa.sh", CHECK_STATUS="0", NPROC="two")
    assert done.returncode != 0
    assert "NPROC=two" in done.stderr


def test_check_env_reads_what_toml_says(monkeypatch):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later have it")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    check_env = importlib.import_module("check_env")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert check_env.read_lists("project")["dependencies"] == project["dependencies"]
    assert check_env.read_lists("project.optional-dependencies") == project["optional-dependencies"]


def test_check_env_names_what_is_missing():
    program = [sys.executable, ROOT / "scripts" / "check_env.py"]
    assert subprocess.run(program, capture_output=True, text=True).returncode == 0
    bare = subprocess.run([program[0], "-I", "-S", program[1]], capture_output=True, text=True)
    assert bare.returncode != 0
    unknown = subprocess.run([*program, "no-such-extra"], capture_output=True, text=True)
    assert "dev" in unknown.stderr
    assert unknown.returncode != 0
