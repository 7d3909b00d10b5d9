"""What all tests share holds however they are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_torch_has_one_thread():
    if os.environ["OMP_NUM_THREADS"] != "1":
        pytest.skip("OMP_NUM_THREADS asks for another number")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("before", ["", "import torch"], ids=["torch comes later", "torch is there"])
def test_torch_has_one_thread_where_nothing_is_asked_for(before):
    program = (
        f"{before}\n"
        "import sys, tests.conftest\n"
        f"assert ('torch' in sys.modules) == {bool(before)}\n"
        "tests.conftest.pytest_configure()\n"
        "import torch\n"
        "print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
