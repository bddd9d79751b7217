# What the scripts beside this one share. Each shows one tool at work with a LoRAMoE adapter, offline and on the CPU:
#
#   source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
#   environment axolotl                        # PYTHON of .venv-axolotl, made once with axolotl.txt of this folder
#   versions axolotl transformers peft torch   # printed, so that a log tells what was run
#   trained_adapter                            # BASE and ADAPTER: the ones that run_loramoe.sh trains, made once
#   show lm_eval --model hf …                  # prints a command, then runs it
#   check tests/ecosystem/test_lm_eval.py      # the tests that need this environment
#
# The working directory is the repository's root. Any command that fails ends the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/setup_env.sh
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES=
BASE=data/tiny_llama
ADAPTER=output/tiny_llama/sft_lora_model

# environment NAME [FILE]: a tool's own environment, as its pins may ask for other versions than ours.
environment() {
    make_venv "$PWD/.venv-$1" "${2:-scripts/ecosystem/$1.txt}"
    PYTHON=$PWD/.venv-$1/bin/python
    export PYTHON PATH=${PYTHON%/*}:$PATH
}

# project_environment: the project's own, with the optional engines, for tools that work with our versions; PYTHON names
# another that has them.
project_environment() {
    [[ -n ${PYTHON:-} ]] || make_venv "$PWD/.venv" requirements-engines.txt
    PYTHON=$(command -v "${PYTHON:-$PWD/.venv/bin/python}")
    export PYTHON PATH=${PYTHON%/*}:$PATH
}

versions() {
    "$PYTHON" -c 'import importlib.metadata, sys
print("versions: python", sys.version.split()[0], *(f"{n} {importlib.metadata.version(n)}" for n in sys.argv[1:]), sep=" | ")' "$@"
}

# One at a time, as another script may need it too.
trained_adapter() {
    mkdir -p "${ADAPTER%/*}"
    (
        flock 9
        [[ -f ${ADAPTER%/*}/metrics.json ]] && exit # the last file of a finished run
        make_venv "$PWD/.venv" requirements-engines.txt
        PYTHON=$PWD/.venv/bin/python bash run_loramoe.sh
    ) 9>output/ecosystem.lock
}

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

check() {
    show "$PYTHON" -m pytest -q -p no:cacheprovider "$@"
}
