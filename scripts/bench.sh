#!/usr/bin/env bash
# How fast it is: requests stage by stage, whole runs of questions, and what doubles when something doubles; published
# VisionZip, upstream's loop and ours side by side. Prints tables; writes bench.json, bench.md and charts.
#
#   bash scripts/bench.sh --quick         a small model on a CPU, two minutes
#   bash scripts/bench.sh                 on a CPU the same at length; on a GPU LLaVA-NeXT and 1.5, 7B and 13B
#   bash scripts/bench.sh CHECKPOINT      a directory or a hub id
#   bash scripts/bench.sh --all-options   every option
#
# Weights are random without CHECKPOINT: neither time nor memory depends on them, and nothing is downloaded.
# Uses the python3 on PATH if it has the project's requirements and the `eval` extra, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one; without matplotlib there are no charts.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/env.sh"

help_if_asked "$@"
if [[ ${1:-} == --all-options ]]; then set -- --help; fi
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env eval; fi
exec "$PY" -m llava.perf.bench "$@"
