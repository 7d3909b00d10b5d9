#!/usr/bin/env bash
# LLaVA-Bench in the wild: conversation, description and reasoning in free answers.
#
# The scores come from a language model: python -m llava.eval.judge llava_bench ANSWERS --base-url URL --model NAME
#
#   bash scripts/eval/llava_bench.sh CHECKPOINT       on playground/data/eval/llava-bench-in-the-wild
#   bash scripts/eval/llava_bench.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/llava_bench.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/llava_bench.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark llava_bench "$@"
