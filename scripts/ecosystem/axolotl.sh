#!/usr/bin/env bash
# LoRAMoE in axolotl, by the plug-in loramoe.integrations.axolotl: some steps on the small model, by axolotl's own command line. The tests
# compute the loss that axolotl logs again, without axolotl, also of packed samples, and train on a base in 4 bits.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment axolotl
# Its own list of dependencies brings GPU kernels (xformers, torchao, flash-linear-attention), clients of clouds, gradio and more.
"$PYTHON" -m pip install --disable-pip-version-check --quiet --no-deps axolotl==0.19.0
versions axolotl transformers peft trl torch
export PYTHONPATH=$PWD AXOLOTL_DO_NOT_TRACK=1

show axolotl train examples/integrations/axolotl.yaml --launcher python
check tests/ecosystem/test_axolotl.py
