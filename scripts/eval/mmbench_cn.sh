#!/usr/bin/env bash
# MMBench-CN: MMBench in Chinese; dev set.
#
#   bash scripts/eval/mmbench_cn.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/mmbench
#   bash scripts/eval/mmbench_cn.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/mmbench_cn.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/mmbench_cn.sh --all-options    every option
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark mmbench_cn "$@"
