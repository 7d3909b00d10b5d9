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
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

case ${1:-} in
  -h | --help)
    show_help
    exit
    ;;
  --all-options) exec bash "$here/textvqa.sh" --all-options ;;
esac
for option in "$@"; do
  case $option in
    --out* | --answers-file* | --question-file* | --image-folder* | --annotation-file*)
      die "$option is for one benchmark; give it to that one's own script." ;;
  esac
done
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env eval; fi
"$PY" -c 'import sys; from llava.eval.run import parse_arguments; parse_arguments(["textvqa", *sys.argv[1:]])' "$@"
embedded=()
if [[ $# == 0 || $1 == -* ]]; then embedded=(--embedded); fi
tasks=$("$PY" -m llava.eval.data --ready ${embedded[@]+"${embedded[@]}"})
[[ -n $tasks ]] || die "no benchmark's data is there; python -m llava.eval.data says what is missing and where it comes from."
worst=0 failed=()
for task in $tasks; do
  printf '\n%s\n' "$task"
  status=0
  (launch llava.eval.run "$task" "$@") || status=$?
  if ((status == 130)); then exit 130; fi
  if ((status > 1)); then failed+=("$task"); fi
  if ((status > worst)); then worst=$status; fi
done
printf '\n'
if ((${#failed[@]} > 0)); then note "without scores, for the reasons above: ${failed[*]}"; fi
"$PY" -m llava.eval.report || worst=$?
exit "$worst"
