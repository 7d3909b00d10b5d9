#!/usr/bin/env bash
# Answer the questions of a benchmark with a LLaVA checkpoint, and score the answers.
#
#   bash scripts/eval/benchmark.sh TASK                  the embedded tiny model and data: textvqa, pope, scienceqa
#   bash scripts/eval/benchmark.sh TASK CHECKPOINT       a directory or a hub id, on playground/data/eval
#   bash scripts/eval/benchmark.sh TASK CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/benchmark.sh TASK CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/benchmark.sh TASK --all-options    every option
#
# Links to this script, such as textvqa.sh, have their task in their name. With several GPUs it runs one process on each;
# CUDA_VISIBLE_DEVICES chooses them, NPROC sets the number.
# Uses the python3 on PATH if it has the project's requirements, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one. TORCH_SPEC="torch==2.12.0 --index-url …" sets up .venv with another torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

# The first line of each benchmark's file says what it is.
list_benchmarks() {
  local file name
  for file in "$ROOT"/llava/eval/tasks/[a-z]*.py; do
    name=${file##*/}
    [[ $name == base.py ]] || printf '  %-12s %s\n' "${name%.py}" "$(sed -n '1{s/^"""//; s/"""$//; p; q}' "$file")"
  done
}

called=${BASH_SOURCE[0]##*/} called=${called%.sh}
if [[ $called != benchmark ]]; then
  set -- "$called" "$@"
elif [[ $# == 0 || $1 == -* ]]; then
  show_help
  printf '\nBenchmarks:\n'
  list_benchmarks
  [[ ${1:-} == -h || ${1:-} == --help ]] || die "name a TASK first."
  exit
fi

task=$1
shift
case ${1:-} in
  -h | --help)
    printf '%s: ' "$task"
    list_benchmarks | sed -n "s/^  ${task%%_*}[a-z_]* *//p" | head -n 1
    show_help | sed "s/benchmark\.sh TASK/$([[ $called == benchmark ]] && printf 'benchmark.sh ')$task$([[ $called == benchmark ]] || printf '.sh')/"
    exit
    ;;
  --all-options)
    NPROC=1
    set -- --help
    ;;
esac
setup_env
launch llava.eval.run "$task" "$@"
