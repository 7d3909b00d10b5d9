"""What the README shows is true: its first program runs, its links and commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_program_prints_the_answer():
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "texts=['sale'], image_tokens=[7]" in done.stdout


def test_files_that_are_named_exist():
    named = re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(r"bash (scripts/\S+\.sh)", README)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []
