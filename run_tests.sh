#!/usr/bin/env bash
# Runs the tests that a change needs, in about two minutes on 2 cores, and sets up what they need first. Other arguments go to pytest:
#
#   bash run_tests.sh
#   bash run_tests.sh --all            # the slow ones too: launchers, engines, kills, every command of the pages
#   bash run_tests.sh tests/training
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/setup_env.sh
use_environment train gguf dev

selection=(-m "not slow")
if [[ ${1:-} == --all ]]; then selection=() && shift; fi
# One process per core, up to 8, with one thread each: every process loads torch.
cores=$("$PYTHON" -c 'import os; print(min(8, os.cpu_count() or 1))')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest -n "$cores" --dist worksteal "${selection[@]}" "$@"
