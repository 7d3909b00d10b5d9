#!/usr/bin/env bash
# SEED-Bench: multiple choice about images and video frames.
#
#   bash scripts/eval/seed.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/seed_bench
#   bash scripts/eval/seed.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/seed.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/seed.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark seed "$@"
