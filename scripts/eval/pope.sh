#!/usr/bin/env bash
# POPE: is there such an object in the image? Yes or no; F1 over three lists of objects.
#
#   bash scripts/eval/pope.sh                  the embedded tiny model on the embedded data
#   bash scripts/eval/pope.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/pope
#   bash scripts/eval/pope.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/pope.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/pope.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark pope "$@"
