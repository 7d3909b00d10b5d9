#!/usr/bin/env bash
# The paper's analyses: where the vision tower looks, who should choose the tokens, accuracy against budget.
#
#   bash scripts/analysis.sh                  the embedded tiny model on the embedded data
#   bash scripts/analysis.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/textvqa
#   bash scripts/analysis.sh --limit 100      only the first 100 images, or questions
#   bash scripts/analysis.sh --out DIR        all files into one folder
#
# Passes on what the three commands share: CHECKPOINT, --limit, --batch-size, --device, --out, --verbose. By itself each
# has more options, of its own: python -m llava.analysis.attention --help (--images: other pictures than the embedded),
# llava.analysis.misalignment, llava.analysis.sweep. Tables (.csv) and plots (.png) go to playground/results.
# Uses the python3 on PATH if it has the project's requirements and the `eval` extra, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/env.sh"

help_if_asked "$@"
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env eval; fi
for analysis in llava.analysis.attention llava.analysis.misalignment llava.analysis.sweep; do
  "$PY" -m "$analysis" "$@"
  echo
done
