#!/usr/bin/env bash
# Train projector and language model, VisionZip on: LLaVA's second stage, the paper's training from scratch.
#
#   bash scripts/finetune.sh                  the embedded tiny model, minutes on a CPU
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=llava_v1_5_mix665k.json IMAGES=playground/data \
#     bash scripts/finetune.sh --vision_tower openai/clip-vit-large-patch14-336 \
#     --pretrain_mm_mlp_adapter checkpoints/pretrain/mm_projector.bin --dominant 54 --contextual 10
#   bash scripts/finetune.sh --all-options
#
# Flags are LLaVA's; defaults are in configs/finetune.yaml (embedded: configs/signs/finetune.yaml).
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

[[ -n ${MODEL:-} ]] || make_signs_data
tune finetune "$@"
