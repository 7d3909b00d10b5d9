# shellcheck shell=bash
# What every script shares; sourced, never run. `setup_env [EXTRA ...]` leaves in $PY a Python that can run the project:
#
#   $PYTHON       if that variable is set: exactly this one, or an error
#   python3       on PATH (an active virtual environment, conda), if it has what pyproject.toml asks for
#   .venv         otherwise: made once in the repository from constraints.txt, brought up to date when that file or
#                 pyproject.toml changes. TORCH_SPEC="torch==2.12.0 --index-url …" installs another torch than the pinned.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
STAMP=$VENV/.visionzip # empty while .venv is being made, then what it was made from: a killed set-up is seen and redone

note() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  note "$@"
  exit 1
}

# The comment at the head of the script is its help.
show_help() {
  sed -n '2,/^[^#]/{ /^#/!d; s/^# \{0,1\}//; p; }' "$0"
}

help_if_asked() {
  case ${1:-} in
    -h | --help)
      show_help
      exit
      ;;
  esac
}

# shellcheck disable=SC2120  # extras: scripts that need some pass their names
setup_env() {
  export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
  if [[ -n ${PYTHON:-} ]]; then
    use_given_python "$@"
  elif PY=$(type -P python3 || type -P python) && check_env "$@" >/dev/null 2>&1; then
    return
  else
    use_venv "$@"
  fi
}

check_env() { "$PY" "$ROOT/scripts/check_env.py" "$@"; }

use_given_python() {
  local why status=0
  PY=$(type -P "$PYTHON") || die "PYTHON=$PYTHON is no program that can be run. Give the path of a Python, or unset PYTHON to let this script set up .venv."
  [[ $PY == /* ]] || PY=$PWD/$PY
  why=$(check_env "$@" 2>&1) || status=$?
  case $status in
    0) ;;
    4) note "PYTHON=$PYTHON: $why: not tested, going on." ;;
    *) die "PYTHON=$PYTHON cannot run the project: ${why##*$'\n'}. Install that there, or unset PYTHON to let this script set up .venv." ;;
  esac
}

use_venv() {
  local why extras=("$@")
  PY=$VENV/bin/python
  if venv_is_ready "$@"; then
    return
  fi
  if [[ -e $VENV && ! -e $STAMP ]]; then
    why=$(check_env "$@" 2>&1) && return
    die "$VENV was not made by this script and cannot run the project: ${why##*$'\n'}. Install that there, or remove .venv and run this again."
  fi

  lock_venv
  if ! venv_is_ready "$@"; then # another script may have made it while this one waited
    if [[ -s $STAMP ]] && "$PY" -c '' 2>/dev/null; then
      read -r -a extras <<<"$* $(sed -n 2p "$STAMP")" # keep what other scripts asked for
    else
      create_venv
    fi
    install_project ${extras[@]+"${extras[@]}"}
  fi
  exec 9>&-
}

# Holds fd 9 until it is closed or the process ends, however it ends.
lock_venv() {
  local base
  base=$(base_python) || exit 1
  [[ -w $ROOT ]] || die "cannot make .venv: $ROOT is not writable. Make it so, or set PYTHON to a Python that has the project's requirements."
  exec 9>"$VENV.lock"
  "$base" - <<'PYTHON_END'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another script that is setting up .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
PYTHON_END
}

# Python >= 3.10 with the venv module, outside .venv.
base_python() {
  local name candidate
  for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    while IFS= read -r candidate; do
      if [[ $candidate != "$VENV"/* ]] &&
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        printf '%s\n' "$candidate"
        return
      fi
    done < <(type -aP "$name")
  done
  die "no Python >= 3.10 with the venv module on PATH. Install one (Debian, Ubuntu: apt install python3 python3-venv), or set PYTHON to one that has the project's requirements."
}

fingerprint() {
  { cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" && torch_spec; } | cksum
}

# TORCH_SPEC, the one .venv was made with, or the pinned one.
torch_spec() {
  if [[ -n ${TORCH_SPEC:-} ]]; then
    printf '%s\n' "$TORCH_SPEC"
  else
    cat "$VENV/.torch-spec" 2>/dev/null || grep -m 1 '^torch==' "$ROOT/constraints.txt"
  fi
}

venv_is_ready() {
  local extra have
  [[ -s $STAMP && $(sed -n 1p "$STAMP") == "$(fingerprint)" ]] || return 1
  have=" $(sed -n 2p "$STAMP") "
  for extra in "$@"; do
    [[ $have == *" $extra "* ]] || return 1
  done
  "$PY" -c '' 2>/dev/null # its base Python may be gone
}

create_venv() {
  local base
  base=$(base_python) || exit 1
  if [[ -e $VENV ]]; then
    note "making .venv again: its set-up was cut off, or the Python it was made with is gone"
    rm -rf "$VENV"
  fi
  mkdir "$VENV"
  : >"$STAMP"
  "$base" -m venv "$VENV"
}

install_project() {
  local spec start=$SECONDS extras
  extras=$(printf '%s\n' "$@" | sort -u | paste -s -d ' ' -)
  spec=$(torch_spec)
  note "setting up .venv${extras:+ for $extras} (torch first: $spec). Once; a minute or so, plus the downloads."
  : >"$STAMP"
  trap 'note "stopped while setting up .venv; the same command begins again"; exit 130' INT
  if [[ -n ${TORCH_SPEC:-} ]]; then
    printf '%s\n' "$TORCH_SPEC" >"$VENV/.torch-spec"
  fi
  grep -v '^torch==' "$ROOT/constraints.txt" >"$VENV/constraints.txt"
  # shellcheck disable=SC2086  # TORCH_SPEC may hold pip options
  pip_install $spec
  pip_install -c "$VENV/constraints.txt" -e "$ROOT${extras:+[${extras// /,}]}"
  printf '%s\n%s\n' "$(fingerprint)" "$extras" >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
  trap - INT
  note ".venv is ready after $((SECONDS - start)) s"
}

# -I: with PYTHONPATH set, pip takes the repository's own egg-info for an installed package.
pip_install() {
  "$PY" -I -m pip install -qq --no-input --disable-pip-version-check "$@" ||
    die "pip could not install $* (its reasons are above). Check the network and run this again, or set PYTHON to a Python that has the project's requirements."
}

# Runs a module in $PY, as torchrun does with one process per GPU where there are several. NPROC overrides the count.
launch() {
  local nproc=${NPROC:-$(visible_gpus)}
  [[ ${NPROC:-1} =~ ^[1-9][0-9]*$ ]] || die "NPROC=$nproc is no number of processes. Give 1 or more, or unset it for one per GPU."
  if ((nproc > 1)); then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # one thread per process, without torchrun saying so
    exec "$PY" -m llava.utils.launch --standalone --nproc_per_node "$nproc" -m "$@"
  fi
  exec "$PY" -m "$@"
}

visible_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
  else
    { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ' || true
  fi
}
