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
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train_env.sh"

set_up_training "$@"

[[ -n ${MODEL:-} ]] || make_signs_data
tune finetune "$@"
