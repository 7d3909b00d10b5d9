#!/usr/bin/env bash
# TextVQA: answer the questions, score the answers.
#
#   bash scripts/eval/textvqa.sh                  the embedded tiny model on the embedded data
#   bash scripts/eval/textvqa.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/textvqa
#   bash scripts/eval/textvqa.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/textvqa.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/textvqa.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark textvqa "$@"
