#!/usr/bin/env bash
# Liger's kernels under LoRAMoE. Without a GPU the real kernels run in Triton's interpreter, all but RMSNorm, for which it
# lacks rsqrt; that fused loss and SwiGLU leave loss, gradients and constraint as they are is what the tests compare.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment liger
versions liger_kernel triton transformers peft torch
export TRITON_INTERPRET=1 OMP_NUM_THREADS=1 # the interpreter has to be chosen before triton is imported
check tests/ecosystem/test_liger.py
