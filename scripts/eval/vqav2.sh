#!/usr/bin/env bash
# VQAv2: open questions about COCO images; soft accuracy on the validation set.
#
#   bash scripts/eval/vqav2.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/vqav2
#   bash scripts/eval/vqav2.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/vqav2.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/vqav2.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark vqav2 "$@"
