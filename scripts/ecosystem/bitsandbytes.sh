#!/usr/bin/env bash
# Bases in 4 bits (nf4, double quantisation) and in 8 by bitsandbytes, on the CPU, by train.py's command line: evaluated,
# trained, saved, trained further.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions bitsandbytes transformers peft torch
export PYTHONPATH=$PWD OMP_NUM_THREADS=1
common="--model_name_or_path $BASE --dataset_dir data/tiny_data/train --validation_file data/tiny_data/test.json"
common+=" --max_steps 5 --learning_rate 2e-3 --per_device_train_batch_size 4 --max_seq_length 128 --use_cpu true"
common+=" --overwrite_output_dir true --disable_tqdm true --report_to none"
for bits in 4 8; do
    show "$PYTHON" train.py $common --load_in_kbits $bits --output_dir output/bitsandbytes/$bits
done
show "$PYTHON" train.py $common --load_in_kbits 4 --peft_path output/bitsandbytes/4/sft_lora_model \
    --output_dir output/bitsandbytes/reloaded
check tests/ecosystem/test_bitsandbytes.py
