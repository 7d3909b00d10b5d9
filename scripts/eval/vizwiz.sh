#!/usr/bin/env bash
# VizWiz: questions that blind people asked about their photographs; accuracy on the validation set.
#
#   bash scripts/eval/vizwiz.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/vizwiz
#   bash scripts/eval/vizwiz.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/vizwiz.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/vizwiz.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark vizwiz "$@"
