#!/usr/bin/env bash
# Train a projector from nothing on captions, tower and language model frozen: LLaVA's first stage, VisionZip on.
#
#   bash scripts/pretrain.sh                  the embedded tiny model, minutes on a CPU
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=blip_laion_cc_sbu_558k.json IMAGES=images \
#     bash scripts/pretrain.sh --vision_tower openai/clip-vit-large-patch14-336 --dominant 54 --contextual 10
#   bash scripts/pretrain.sh --all-options
#
# Flags are LLaVA's; defaults are in configs/pretrain.yaml (embedded: configs/signs/pretrain.yaml).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train_env.sh"

set_up_training "$@"

if [[ -n ${MODEL:-} ]]; then
  tune pretrain "$@"
  exit
fi

DATA=${DATA:-$SIGNS_DATA/captions.json}
make_signs_data
SIGNS=$ROOT/playground/results/train/signs-language-model # the embedded model without its projector
"$PY" -m playground.signs.language_model "$SIGNS"
tune pretrain --vision_tower "$ROOT/playground/checkpoints/clip-signs-112" "$@"
