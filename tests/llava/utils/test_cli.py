"""How commands end: quietly where nobody reads any more, and with a reason else."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from llava.utils.cli import BAD_REQUEST, NOBODY_READS, run_command

COMMAND = """
import argparse, sys
from llava.utils.cli import exit_with, run_command, print_once

def work(args):
    sys.stdin.readline()  # until the reader has gone
    {work}
    return 0

sys.exit(run_command(work, argparse.Namespace(verbose=False)))
"""
WAYS = {
    "a line": "print('x')",
    "more than a pipe holds": "print('x' * 10**6)",
    "without a flush": "sys.stdout.write('x')",
    "on stderr": "print_once('x')",
    "a reason to end": "raise ValueError('x')",
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("work", WAYS)
def test_a_reader_that_goes_ends_a_command_quietly(work, unbuffered):
    reader, writer = os.pipe()
    lost, kept = ("stderr", "stdout") if work in ("on stderr", "a reason to end") else ("stdout", "stderr")
    command = [sys.executable, "-c", COMMAND.format(work=WAYS[work])]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment, text=True, **{lost: writer, kept: subprocess.PIPE}
    )
    os.close(writer)
    os.close(reader)
    out, err = process.communicate("gone\n", timeout=120)
    assert (out or "", err or "") == ("", "")
    assert process.returncode == NOBODY_READS


def test_another_broken_pipe_is_told(capsys):
    def work(args):
        raise BrokenPipeError(32, "Broken pipe")

    assert run_command(work, argparse.Namespace(verbose=False)) == BAD_REQUEST
    assert capsys.readouterr().err == "[Errno 32] Broken pipe\n"


def test_upstreams_script_ends_quietly_too(tmp_path):
    known = {"data": [{"image_id": "i", "question": "Q?", "answers": ["yes"] * 10}]}
    (tmp_path / "a.json").write_text(json.dumps(known))
    (tmp_path / "r.jsonl").write_text('{"question_id": "i", "prompt": "Q?\\nBriefly.", "text": "yes"}\n')
    command = [sys.executable, "-m", "llava.eval.eval_textvqa", "--annotation-file", str(tmp_path / "a.json")]
    reader, writer = os.pipe()
    os.close(reader)
    command += ["--result-file", str(tmp_path / "r.jsonl")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (NOBODY_READS, "")
