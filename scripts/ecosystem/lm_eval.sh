#!/usr/bin/env bash
# lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) on a LoRAMoE adapter, by its own command and by ours: the
# benchmarks of the paper on stand-in files, offline. What the numbers are held to: tests/ecosystem/test_lm_eval.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

project_environment
versions lm_eval transformers peft torch datasets
trained_adapter

export PYTHONPATH=. # the adapter's method is registered by the overlay of peft
tasks=(--include_path evaluation/lm_eval --tasks loramoe_paper_standin)
show lm_eval --model hf --model_args pretrained=$BASE,peft=$ADAPTER --device cpu --batch_size 32 "${tasks[@]}" --gen_kwargs max_gen_toks=32
show "$PYTHON" -m loramoe.evaluate --adapter "$ADAPTER" "${tasks[@]}" --max_new_tokens 32 --overwrite --output_dir output/evaluation_paper
check tests/ecosystem/test_lm_eval.py
