#!/usr/bin/env bash
# How far can an image be cut: accuracy at five budgets, for VisionZip, random and uniform tokens, or those of --selectors;
# a table and a plot.
#
#   bash scripts/eval/sweep.sh                  the embedded tiny model on the embedded data
#   bash scripts/eval/sweep.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/textvqa
#   bash scripts/eval/sweep.sh --all-options    every option
#
# Writes sweep.csv, sweep.json and sweep.png to playground/results/sweep, or to --out DIR.
# Uses the python3 on PATH if it has the project's requirements and the `eval` extra, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

help_if_asked "$@"
if [[ ${1:-} == --all-options ]]; then set -- --help; fi
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env eval; fi
exec "$PY" -m llava.analysis.sweep "$@"
