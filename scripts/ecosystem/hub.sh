#!/usr/bin/env bash
# An adapter on the Hugging Face hub, with the project's versions: `train.py --push_to_hub true` uploads it with its model
# card and figure and nothing else of the run, `push_to_hub` uploads it as any PEFT adapter, and it loads by its name through
# every door, with equal logits. The hub is a small server on 127.0.0.1 (tests/ecosystem/hub_server.py): nothing leaves the
# machine. The card of a short run is printed first.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions huggingface_hub transformers peft torch

show env max_steps=10 overwrite_output_dir=true output_dir=output/hub bash run_loramoe.sh
show cat output/hub/sft_lora_model/README.md
check tests/analysis/test_card.py tests/training/test_summary.py tests/ecosystem/test_hub.py
