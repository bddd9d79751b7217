#!/usr/bin/env bash
# Builds the site of docs/ into site/, in an environment of its own (.venv-docs); any warning is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
venv=$PWD/.venv-docs
if [[ ! -x $venv/bin/mkdocs ]]; then
    "$(find_python)" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
fi
NO_MKDOCS_2_WARNING=1 exec "$venv/bin/mkdocs" build --strict --site-dir "${1:-site}"
