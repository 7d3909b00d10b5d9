#!/usr/bin/env bash
# What tuning the projector regains, on the embedded model: three budgets, three seeds; a table and a plot.
#
#   bash scripts/tuning_table.sh                  about a quarter of an hour on a CPU; runs that are done are not repeated
#   bash scripts/tuning_table.sh --all-options    every option
#
# Writes tuning.csv, tuning.json and tuning.png to playground/results/tuning, or to --out DIR.
# Uses the python3 on PATH if it has the project's requirements and the `train` extra, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/env.sh"

help_if_asked "$@"
if [[ ${1:-} == --all-options ]]; then set -- --help; fi
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env train; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # so small a model only loses time with more
exec "$PY" -m playground.signs.tuning "$@"
