#!/usr/bin/env bash
# MM-Vet: free answers to questions that need several abilities at once.
#
# The scores come from a language model: python -m llava.eval.judge mmvet ANSWERS --base-url URL --model NAME
#
#   bash scripts/eval/mmvet.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/mm-vet
#   bash scripts/eval/mmvet.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/mmvet.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/mmvet.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark mmvet "$@"
