#!/usr/bin/env bash
# MMMU: college questions of 30 subjects, some about several images; choices and open answers of the validation set.
#
#   bash scripts/eval/mmmu.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/mmmu
#   bash scripts/eval/mmmu.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/mmmu.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/mmmu.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark mmmu "$@"
