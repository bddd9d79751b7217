#!/usr/bin/env bash
# Looks at a page in a real browser, whose environment, .venv-browser, it makes once:
#
#   bash scripts/browser.sh                          # the environment alone, for tests/analysis/test_browser.py
#   bash scripts/browser.sh experts.html FOLDER      # pictures of the page: light, dark, on a phone, printed in grey
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
venv=$project_root/.venv-browser
stamp=$venv/.installed-$(cksum <"$project_root/scripts/browser.txt" | cut -d' ' -f1)
if [[ ! -f $stamp ]]; then # not by make_venv, which installs torch first
    base=$(find_python) || fail "Python 3.10, 3.11, 3.12 or 3.13 is needed and was not found. Install one of them."
    "$base" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check -r "$project_root/scripts/browser.txt"
    touch "$stamp"
fi
[[ $# -eq 0 ]] || "$venv/bin/python" "$project_root/scripts/browser.py" "$@"
