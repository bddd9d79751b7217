#!/usr/bin/env bash
# Bases in 4 bits (nf4, double quantisation) and in 8 by bitsandbytes, on the CPU, by train.py's command line. There it
# wants widths that are multiples of 64, so a base of random weights and such widths is made first.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions bitsandbytes transformers peft torch
export PYTHONPATH=$PWD OMP_NUM_THREADS=1
wide=output/bitsandbytes/base
show python - $BASE $wide <<'PYTHON'
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from loramoe.training.versions import save_tokenizer

config = AutoConfig.from_pretrained(sys.argv[1], intermediate_size=384)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])
save_tokenizer(AutoTokenizer.from_pretrained(sys.argv[1]), Path(sys.argv[2]))
PYTHON
common="--model_name_or_path $wide --dataset_dir data/tiny_data/train --validation_file data/tiny_data/test.json"
common+=" --max_steps 5 --learning_rate 2e-3 --per_device_train_batch_size 4 --max_seq_length 128 --use_cpu true"
common+=" --overwrite_output_dir true --disable_tqdm true --report_to none"
for bits in 4 8; do
    show python train.py $common --load_in_kbits $bits --output_dir output/bitsandbytes/$bits
done
show python train.py $common --load_in_kbits 4 --peft_path output/bitsandbytes/4/sft_lora_model --do_train false \
    --output_dir output/bitsandbytes/reloaded
check tests/ecosystem/test_bitsandbytes.py
