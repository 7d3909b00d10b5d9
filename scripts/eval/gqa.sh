#!/usr/bin/env bash
# GQA: questions about what is where in a scene; exact match on the balanced test-dev set.
#
#   bash scripts/eval/gqa.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/gqa
#   bash scripts/eval/gqa.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/gqa.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/gqa.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark gqa "$@"
