import sys

import pytest

from llava.utils.launch import main

OPTIONS = ["--standalone", "--nproc_per_node", "2"]


@pytest.mark.parametrize(
    ("program", "status"), [("pass", 0), ("import sys; sys.exit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_it_ends_as_its_processes_end(tmp_path, capfd, program, status):
    (tmp_path / "program.py").write_text(program)
    assert main([*OPTIONS, str(tmp_path / "program.py")]) == status
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert ("SIGKILL" in said) == (status == 137)
    assert sys.executable not in said
