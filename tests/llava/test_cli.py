"""How commands end: quietly where nobody reads any more, and with a reason else."""

import argparse
import os
import subprocess
import sys

import pytest

from llava.cli import BAD_REQUEST, NOBODY_READS, status_of

COMMAND = """
import argparse, sys
from llava.cli import exit_with, status_of, tell

def work(args):
    sys.stdin.readline()  # until the reader has gone
    {work}
    return 0

sys.exit(status_of(work, argparse.Namespace(verbose=False)))
"""
WAYS = {
    "a line": "print('x')",
    "more than a pipe holds": "print('x' * 10**6)",
    "without a flush": "sys.stdout.write('x')",
    "on stderr": "tell('x')",
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

    assert status_of(work, argparse.Namespace(verbose=False)) == BAD_REQUEST
    assert capsys.readouterr().err == "[Errno 32] Broken pipe\n"
