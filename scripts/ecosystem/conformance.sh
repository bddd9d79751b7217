#!/usr/bin/env bash
# What PEFT's own tests check of every method, with the newest peft and the oldest that is supported.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions peft transformers torch
check tests/conformance
environment oldest requirements-oldest.txt
versions peft transformers torch
check tests/conformance
