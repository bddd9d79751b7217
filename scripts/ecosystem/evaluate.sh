#!/usr/bin/env bash
# The base model and an adapter in one table, by this project's own command, and the tests that hold its numbers to a plain loop.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions peft transformers torch
trained_adapter
export PYTHONPATH=$PWD
show "$PYTHON" -m loramoe.evaluate --adapter "$ADAPTER" --file data/tiny_data/test.json data/tiny_data/recall.json --output_dir output/evaluation
check tests/evaluation tests/test_evaluate.py -m "not slow"
