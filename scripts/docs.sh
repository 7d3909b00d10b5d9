#!/usr/bin/env bash
# Build the documentation, API pages from the docstrings included; a link that leads nowhere is an error.
#
#   bash scripts/docs.sh          writes site/
#   bash scripts/docs.sh serve    shows it at 127.0.0.1:8000
#
# Uses the python3 on PATH if it has the project's requirements and the `docs` extra, otherwise sets up .venv once.
# PYTHON=/path/to/python uses that one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$here/env.sh"

help_if_asked "$@"
if [[ -n ${PYTHON:-} ]]; then setup_env; else setup_env docs; fi
cd "$ROOT"

# README and docs/ lie among the pages as they do in the repository, so that their links are the same in both.
pages=$ROOT/build/pages
rm -rf "$pages"
mkdir -p "$pages/playground"
cp README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md "$pages"
cp -R docs "$pages"
cp playground/README.md "$pages/playground"

case ${1:-build} in
  build) "$PY" -m mkdocs build --strict --quiet && note "the pages are in $ROOT/site" ;;
  serve) exec "$PY" -m mkdocs serve --dev-addr 127.0.0.1:8000 ;;
  *) die "$1 is unknown; choose build or serve." ;;
esac
