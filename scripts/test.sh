#!/usr/bin/env bash
# Check the code and run the tests.
#
#   bash scripts/test.sh                    lint, format, shell scripts, quick tests
#   bash scripts/test.sh --cov              the same, and which statements the tests reach
#   bash scripts/test.sh -m slow            the slow tests (gpu: those that need a CUDA device)
#   bash scripts/test.sh -m browser         the web demo in Chromium, found on PATH or named by CHROMIUM
#   bash scripts/test.sh tests/test_x.py    anything after the name goes to pytest
#
# Uses the python3 on PATH if it has the project's requirements and the `dev` extra, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one, with or without ruff and shellcheck (say, on a machine without network).
# TORCH_SPEC="torch==2.12.0 --index-url …" sets up .venv with another torch than the one in constraints.txt.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/env.sh"

help_if_asked "$@"
extras=(dev)
if [[ " $* " == *" -m browser "* ]]; then extras+=(browser); fi
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env "${extras[@]}"; fi
cd "$ROOT"

PATH=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH

failed=()
check() { # NAME COMMAND...
  local name=$1
  shift
  if [[ -n ${PYTHON:-} ]] && ! type -P "$1" >/dev/null; then
    note "$name left out: $PYTHON comes without $1"
  elif ! "$@"; then
    failed+=("$name")
  fi
}

check "ruff check" ruff check --quiet .
check "ruff format" ruff format --check --quiet .
check "shellcheck" shellcheck .ci/run scripts/*.sh scripts/*/*.sh
check "types" basedpyright --project "$ROOT/pyproject.toml" --level error --pythonpath "$PY" # not a config of a folder above

if [[ $# -eq 0 || $* == --cov ]]; then
  cores=$(nproc 2>/dev/null || echo 2)
  set -- -n "$((cores < 8 ? cores : 8))" --dist loadfile "$@"
fi
OMP_NUM_THREADS=1 "$PY" -m pytest -q "$@" || failed+=("pytest")

if [[ ${#failed[@]} -gt 0 ]]; then
  die "failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')"
fi
