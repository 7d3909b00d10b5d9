#!/usr/bin/env bash
# MME: two yes/no questions about each image; points for perception and cognition.
#
#   bash scripts/eval/mme.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/MME
#   bash scripts/eval/mme.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/mme.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/mme.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark mme "$@"
