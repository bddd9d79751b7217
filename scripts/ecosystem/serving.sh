#!/usr/bin/env bash
# `transformers serve` with a LoRAMoE adapter: an OpenAI-compatible server on this machine, whose answers the tests compare
# with those of `model.generate`.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment serving
versions transformers peft torch openai fastapi uvicorn
trained_adapter
check tests/ecosystem/test_serving.py
