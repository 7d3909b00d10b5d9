#!/usr/bin/env bash
# A web page to compare: one picture, two conversations about it, with all its tokens and with the few that VisionZip, or
# you, leave.
#
#   bash scripts/demo.sh                                    the embedded tiny model and its pictures, at 127.0.0.1:7860
#   bash scripts/demo.sh CHECKPOINT --dominant 54 --contextual 10       a directory or a hub id
#   bash scripts/demo.sh --host 0.0.0.0 --port 8000         for other machines too
#   bash scripts/demo.sh --all-options                      every option
#
# Ctrl-C ends it. Uses the python3 on PATH if it has the project's requirements and the `demo` extra, otherwise sets up
# .venv once. PYTHON=/path/to/python uses that one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/env.sh"

help_if_asked "$@"
if [[ ${1:-} == --all-options ]]; then set -- --help; fi
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env demo; fi
exec "$PY" -m llava.serve.demo "$@"
