#!/usr/bin/env bash
# An adapter as a plain LoRA, with its distance from the adapter; the tests load and merge it with plain PEFT, where this
# library is not imported.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions peft transformers torch
trained_adapter
export PYTHONPATH=$PWD
show "$PYTHON" -m loramoe.export --adapter "$ADAPTER" --output_dir output/plain_lora --rank 16 --calibration data/tiny_data/train --test data/tiny_data/test.json --overwrite
show "$PYTHON" -m loramoe.export --format merged --adapter "$ADAPTER" --output_dir output/merged --calibration data/tiny_data/train --test data/tiny_data/test.json --overwrite
check tests/export -m "not slow"
