#!/usr/bin/env bash
# Train a projector from nothing on captions, tower and language model frozen: LLaVA's first stage, VisionZip on.
#
#   bash scripts/pretrain.sh                  the embedded tiny model, minutes on a CPU
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=blip_laion_cc_sbu_558k.json IMAGES=images \
#     bash scripts/pretrain.sh --vision_tower openai/clip-vit-large-patch14-336 --dominant 54 --contextual 10
#   bash scripts/pretrain.sh --all-options
#
# Flags are LLaVA's; defaults are in configs/pretrain.yaml (embedded: configs/signs/pretrain.yaml).
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
  tune pretrain "$@"
  exit
fi

DATA=${DATA:-$SIGNS_DATA/captions.json}
make_signs_data
SIGNS=$ROOT/playground/results/train/signs-language-model # the embedded model without its projector
"$PY" -m playground.signs.language_model "$SIGNS"
tune pretrain --vision_tower "$ROOT/playground/checkpoints/clip-signs-112" "$@"
