#!/usr/bin/env bash
# Train projector and LoRA weights of the language model, VisionZip on; --bits 4 quantizes the rest (QLoRA).
#
#   bash scripts/finetune_lora.sh                  the embedded tiny model, minutes on a CPU
#   MODEL=liuhaotian/llava-v1.5-7b DATA=llava_v1_5_mix665k.json IMAGES=playground/data \
#     bash scripts/finetune_lora.sh --dominant 54 --contextual 10
#   bash scripts/finetune_lora.sh --all-options
#
# Flags are LLaVA's; defaults are in configs/finetune_lora.yaml (embedded: configs/signs/finetune_lora.yaml).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train_env.sh"

set_up_training "$@"

[[ -n ${MODEL:-} ]] || make_signs_data
tune finetune_lora "$@"
