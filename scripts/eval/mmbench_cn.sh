#!/usr/bin/env bash
# MMBench-CN: MMBench in Chinese; dev set.
#
#   bash scripts/eval/mmbench_cn.sh CHECKPOINT       a directory or a hub id, on playground/data/eval/mmbench
#   bash scripts/eval/mmbench_cn.sh CHECKPOINT --dominant 54 --contextual 10
#   bash scripts/eval/mmbench_cn.sh CHECKPOINT --budgets full,192,128,64
#   bash scripts/eval/mmbench_cn.sh --all-options    every option
#
# With several GPUs it runs one process on each; CUDA_VISIBLE_DEVICES chooses them, NPROC sets the number.
# Uses the python3 on PATH if it has the project's requirements, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one. TORCH_SPEC="torch==2.12.0 --index-url …" sets up .venv with another torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/../env.sh"

run_benchmark mmbench_cn "$@"
