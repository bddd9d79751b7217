#!/usr/bin/env bash
# Base models quantised by torchao, HQQ and GPTQ, each made and loaded on the CPU by its own library.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export DISABLE_CUDA=1 # hqq would look for a compiler of CUDA when it is installed
environment quantised
versions torchao hqq gptqmodel optimum transformers peft torch
check tests/ecosystem/test_quantised.py
