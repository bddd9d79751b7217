#!/usr/bin/env bash
# Runs the whole test suite, setting up what it needs first. Arguments go to pytest:
#
#   bash run_tests.sh
#   bash run_tests.sh -m "not slow" tests/training
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/setup_env.sh
use_environment train gguf dev

# One process per core, up to 8: each loads torch, and one thread each keeps them out of each other's way. Who has finished
# takes over tests of another (worksteal): minutes lie between the shortest and the longest.
cores=$("$PYTHON" -c 'import os; print(min(8, os.cpu_count() or 1))')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest -n "$cores" --dist worksteal "$@"
