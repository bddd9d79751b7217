#!/usr/bin/env bash
# TRL's SFTTrainer: the example to copy trains an adapter; the tests hold losses and weights to those of a plain loop.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions trl transformers peft accelerate torch
export PYTHONPATH=$PWD
show "$PYTHON" examples/trl_sft.py --steps 20
show "$PYTHON" -m loramoe.generate --adapter output/trl_sft --prompt "Which city does Mila Rodak come from?"
check tests/ecosystem/test_trl.py
