#!/usr/bin/env bash
# Tune the multimodal projector alone, VisionZip on: the paper's efficient tuning.
#
#   bash scripts/finetune_projector.sh                  the embedded tiny model: draws its data, tunes, shows before and after
#   MODEL=liuhaotian/llava-v1.5-7b DATA=llava_v1_5_mix665k.json IMAGES=playground/data \
#     bash scripts/finetune_projector.sh --dominant 54 --contextual 10
#   bash scripts/finetune_projector.sh --all-options
#
# Flags are LLaVA's; defaults are in configs/finetune_projector.yaml (embedded: configs/signs/finetune_projector.yaml).
# The result, mm_projector.bin and config.json, lies in OUT (--output_dir) and is loaded with MODEL as its base.
# NPROC sets the number of processes (default one per GPU), LAUNCHER=torchrun, deepspeed or accelerate starts them; several
# machines: docs/TRAINING.md. The same command resumes where a run was stopped.
# Uses the python3 on PATH if it has the project's requirements and the `train` extra, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one. TORCH_SPEC="torch==2.12.0 --index-url …" sets up .venv with another torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/env.sh"
source "$here/train_env.sh"

help_if_asked "$@"
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env train; fi
if [[ ${1:-} == --all-options ]]; then exec "$PY" -m llava.train.train --help; fi

if [[ -n ${MODEL:-} ]]; then
  tune finetune_projector "$@"
  exit
fi

make_signs_data
tune finetune_projector "$@"
if [[ ${NODE_RANK:-0} == 0 ]]; then show_before_and_after "$OUT"; fi
