#!/usr/bin/env bash
# OpenCompass 0.5.4, nothing of it edited, on data/tiny_llama without and with the adapter: multiple choice by perplexity
# and free answers, offline and on the CPU. It prints OpenCompass's own table, once with transformers 4.57, where both of
# its classes for base models work, and once with 5.23, where one does. The tests that end each part compute the same
# numbers without OpenCompass, do it the original release's way too (an edited huggingface.py, in a copy), and run the
# configurations of the paper's benchmarks on stand-in files.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export OMP_NUM_THREADS=1

# In a folder of its own, as OpenCompass leaves tmp/ and icl_inference_output/ where it is started.
evaluate() {
    local folder=$PWD/output/opencompass/$1 config=$PWD/evaluation/opencompass/tiny.py
    rm -rf "$folder" && mkdir -p "$folder"
    (export PYTHONPATH=$PWD && cd "$folder" && show "$PYTHON" -m opencompass.cli.main "$config" --debug -w runs) >"$folder/log" 2>&1 ||
        { tail -n 40 "$folder/log" && return 1; }
    grep -m 1 '^\$ ' "$folder/log"
    cat "$folder"/runs/*/summary/*.md
}

tests=(tests/ecosystem/test_opencompass.py)

environment opencompass
versions opencompass transformers peft torch datasets pyarrow numpy
trained_adapter
evaluate transformers4
check "${tests[@]}"

# Transformers 5 in a small environment over the first one, whose packages it sees where it has none of its own.
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
below=$("$PYTHON" -c "$packages")
above=.venv-opencompass_transformers5
[[ -x $above/bin/python ]] || "$PYTHON" -m venv "$above"
echo "$below" >"$("$above/bin/python" -c "$packages")/below.pth"
environment opencompass_transformers5
versions opencompass transformers peft torch huggingface_hub
evaluate transformers5
check "${tests[@]}"
