#!/usr/bin/env bash
# transformers' own Trainer, of the newest 5.x and of the oldest version that is supported, against a plain loop.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions transformers peft accelerate torch
check tests/tuner/test_trainers.py
environment oldest requirements-oldest.txt
versions transformers peft accelerate torch
check tests/tuner/test_trainers.py
