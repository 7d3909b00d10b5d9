#!/usr/bin/env bash
# VizWiz test: questions that blind people asked about their photographs. Writes the submission that its server scores.
#
#   bash scripts/eval/vizwiz_test.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/vizwiz
#   bash scripts/eval/vizwiz_test.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/vizwiz_test.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/vizwiz_test.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark vizwiz_test "$@"
