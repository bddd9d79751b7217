#!/usr/bin/env bash
# A loop of one's own with accelerate: one process that accumulates prints the losses of two that do not, as the
# constraint's share is right. Two processes by torchrun: on CPUs `accelerate launch --num_processes 2` starts one, unless
# it is given MPI; on GPUs it starts two.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
project_environment
versions accelerate transformers peft torch
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
loop=examples/accelerate_loop.py
show accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no $loop --steps 5
show torchrun --standalone --nproc_per_node 2 $loop --steps 5 --accumulation 1
check tests/ecosystem/test_accelerate.py
