#!/usr/bin/env bash
# LoRAMoE in ms-swift, by the plug-in loramoe/integrations/ms_swift.py: some steps on the small model, by swift's own command line. The tests
# compute the loss that swift logs again, without swift.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment ms_swift
versions ms-swift transformers peft trl torch
export PYTHONPATH=$PWD

show swift sft examples/integrations/ms_swift.yaml
check tests/ecosystem/test_ms_swift.py
