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
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train_env.sh"

set_up_training "$@"

if [[ -n ${MODEL:-} ]]; then
  tune finetune_projector "$@"
  exit
fi

make_signs_data
tune finetune_projector "$@"
if [[ ${NODE_RANK:-0} == 0 ]]; then show_before_and_after "$OUT"; fi
