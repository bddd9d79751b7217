#!/usr/bin/env bash
# Measures the package moe-peft beside ours, in an environment of its own (benchmarks/.venv-moe-peft):
#
#   bash benchmarks/moe_peft.sh [--quick]
#
# The package asks for torch < 2.6 and transformers < 4.47. Only the latter is heeded: on the torch that the other sides run
# on, times can be compared. What else it imports is installed in the versions that pip finds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=benchmarks/.venv-moe-peft
if [[ ! -x $venv/bin/python ]]; then
    "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet torch==2.13.0
"$venv/bin/python" -m pip install --quiet "transformers>=4.44,<4.47" "numpy<2.3" peft==0.21.2 accelerate datasets \
    evaluate sentencepiece scikit-learn tiktoken psutil tqdm
"$venv/bin/python" -m pip install --quiet --no-deps moe-peft==2.0.2
exec "$venv/bin/python" -m benchmarks.moe_peft "$@"
