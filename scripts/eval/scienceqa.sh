#!/usr/bin/env bash
# ScienceQA: multiple choice from school books; accuracy with image, and of all.
#
#   bash scripts/eval/scienceqa.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/scienceqa
#   bash scripts/eval/scienceqa.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/scienceqa.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/scienceqa.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark scienceqa "$@"
