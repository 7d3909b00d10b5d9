# shellcheck shell=bash
# What the training scripts share; sourced, never run.
#
#   NPROC       processes on this machine: default one per GPU; without a GPU one, of the embedded model two
#   LAUNCHER    torchrun (default), deepspeed or accelerate
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT    several machines: the same command on each, NODE_RANK 0, 1, …
#   HOSTFILE    several machines with LAUNCHER=deepspeed: one command, which reaches the others by ssh

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

SIGNS=$ROOT/playground/checkpoints/llava-signs # the embedded model
SIGNS_DATA=$ROOT/playground/data/signs_instruct

# The help of the script, its set-up, every option of the trainer; what all of them do first.
set_up_training() {
  case ${1:-} in
    -h | --help)
      show_help
      cat <<'END'
NPROC sets the number of processes (default one per GPU), LAUNCHER=torchrun, deepspeed or accelerate starts them; several
machines: docs/TRAINING.md. The same command resumes where a run was stopped.
Uses the python3 on PATH if it has the project's requirements and the `train` extra, otherwise sets up .venv once.
PYTHON=/path/to/python uses that one. TORCH_SPEC="torch==2.12.0 --index-url …" sets up .venv with another torch.
END
      exit
      ;;
  esac
  if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env train; fi
  if [[ ${1:-} == --all-options ]]; then exec "$PY" -m llava.train.train --help; fi
}

# tune NAME FLAG...: runs configs/NAME.yaml, on the embedded model configs/signs/NAME.yaml. MODEL, DATA, IMAGES and OUT
# stand for --model_name_or_path, --data_path, --image_folder and --output_dir.
tune() {
  local recipe=$1 flags=() gpus i
  shift
  for ((i = 1; i < $#; i++)); do
    if [[ ${!i} == --output_dir ]]; then OUT=${*:i+1:1}; fi
  done
  gpus=$(visible_gpus)
  if [[ -z ${MODEL:-} ]]; then
    recipe=signs/$recipe
    flags+=(--model_name_or_path "$SIGNS")
    OUT=${OUT:-$ROOT/playground/results/train/signs-${recipe##*/}}
    if ((gpus == 0)); then
      NPROC=${NPROC:-2}
      export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} # else DeepSpeed says at length that it found no GPU
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # so small a model only loses time with more
  else
    flags+=(--model_name_or_path "$MODEL")
  fi
  [[ -z ${DATA:-} ]] || flags+=(--data_path "$DATA")
  [[ -z ${IMAGES:-} ]] || flags+=(--image_folder "$IMAGES")
  [[ -z ${OUT:-} ]] || flags+=(--output_dir "$OUT")
  launch_training llava.train.train --recipe "$ROOT/configs/$recipe.yaml" ${flags[@]+"${flags[@]}"} "$@"
}

launch_training() { # MODULE ARGUMENT...
  local nproc=${NPROC:-} nodes=${NNODES:-1} address=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-29500} where
  nproc=${nproc:-$(visible_gpus)}
  [[ $nproc =~ ^[0-9]+$ ]] || die "NPROC=$nproc is no number of processes. Give 1 or more, or unset it for one per GPU."
  ((nproc > 0)) || nproc=1
  if ((nodes > 1)); then
    [[ -n ${NODE_RANK:-} && -n ${MASTER_ADDR:-} ]] || die "NNODES=$nodes needs NODE_RANK (0 to $((nodes - 1))) and MASTER_ADDR, the address of the first machine."
  fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} # loads images beside the GPU
  case ${LAUNCHER:-torchrun} in
    torchrun)
      where=(--standalone)
      if ((nodes > 1)); then where=(--nnodes "$nodes" --node_rank "$NODE_RANK" --master_addr "$address" --master_port "$port"); fi
      "$PY" -m llava.utils.launch "${where[@]}" --nproc_per_node "$nproc" -m "$@"
      ;;
    deepspeed)
      where=(--num_nodes 1 --num_accelerators "$nproc")
      if [[ -n ${HOSTFILE:-} ]]; then
        where=(--hostfile "$HOSTFILE")
      elif ((nodes > 1)); then
        die "LAUNCHER=deepspeed starts several machines from HOSTFILE. For NNODES and NODE_RANK use LAUNCHER=torchrun."
      fi
      "$PY" -m deepspeed.launcher.runner "${where[@]}" --master_port "$port" --no_local_rank --module "$@"
      ;;
    accelerate)
      where=(--num_machines "$nodes" --num_processes "$((nproc * nodes))" --main_process_port "$port")
      if ((nodes > 1)); then where+=(--machine_rank "$NODE_RANK" --main_process_ip "$address"); fi
      "$PY" -m accelerate.commands.launch --use_deepspeed --mixed_precision no --dynamo_backend no "${where[@]}" --module "$@"
      ;;
    *) die "LAUNCHER=$LAUNCHER is unknown; choose torchrun, deepspeed or accelerate." ;;
  esac
}

# Draws what the embedded model learns from: sign scenes, none of which any evaluation shows.
make_signs_data() {
  DATA=${DATA:-$SIGNS_DATA/llava_instruct.json} IMAGES=${IMAGES:-$SIGNS_DATA/images}
  if [[ $DATA == "$SIGNS_DATA"/* ]]; then "$PY" -m playground.signs.make_instructions --out "$SIGNS_DATA" >&2; fi
}

# Accuracy on the embedded questions, untuned and tuned, at the budget that the result in FOLDER was tuned for.
show_before_and_after() { # FOLDER
  "$PY" -m playground.signs.compare "$SIGNS" "$1"
}
