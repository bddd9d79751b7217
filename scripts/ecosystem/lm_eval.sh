#!/usr/bin/env bash
# lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) on a LoRAMoE adapter: base against adapter in one command
# each, with the local tasks of evaluation/lm_eval. What its numbers are held to: tests/ecosystem/test_lm_eval.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment lm_eval
versions lm_eval transformers peft torch datasets
trained_adapter

export PYTHONPATH=. # the door
show lm_eval --model hf --model_args pretrained=$BASE --device cpu --batch_size 32 --include_path evaluation/lm_eval --tasks loramoe_tiny
show lm_eval --model hf --model_args pretrained=$BASE,peft=$ADAPTER --device cpu --batch_size 32 --include_path evaluation/lm_eval --tasks loramoe_tiny
check tests/ecosystem/test_lm_eval.py
