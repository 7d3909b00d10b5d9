#!/usr/bin/env bash
# Every benchmark whose data is there, at one budget or several; a table for each, and one of all. Run again, it goes on
# where it was.
#
#   bash scripts/eval/all.sh                                            the embedded tiny model on the embedded data
#   bash scripts/eval/all.sh CHECKPOINT --budgets full,192,128,64       a directory or a hub id
#   bash scripts/eval/all.sh --all-options                              every option
#
# `python -m llava.eval.data` says which data is there, and where the rest comes from. `python -m llava.eval.report` shows
# the last table again, and writes it to playground/results with a CSV and a plot.
# With several GPUs it runs one process on each; CUDA_VISIBLE_DEVICES chooses them, NPROC sets the number.
# Uses the python3 on PATH if it has the project's requirements, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one. TORCH_SPEC="torch==2.12.0 --index-url …" sets up .venv with another torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

help_if_asked "$@"
if [[ ${1:-} == --all-options ]]; then run_benchmark textvqa --all-options; fi
for option in "$@"; do
  case $option in
    --out* | --answers-file* | --question-file* | --image-folder* | --annotation-file*)
      die "$option is for one benchmark; give it to that one's own script." ;;
  esac
done
setup_env
embedded=()
if [[ $# == 0 || $1 == -* ]]; then embedded=(--embedded); fi
tasks=$("$PY" -m llava.eval.data --ready "${embedded[@]}")
[[ -n $tasks ]] || die "no benchmark's data is there; python -m llava.eval.data says what is missing and where it comes from."
status=0
for task in $tasks; do
  printf '\n%s\n' "$task"
  (launch llava.eval.run "$task" "$@") || status=$?
  if ((status == 2 || status == 130)); then exit "$status"; fi
done
printf '\n'
"$PY" -m llava.eval.report
exit "$status"
