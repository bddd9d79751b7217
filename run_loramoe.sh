#!/usr/bin/env bash
# Fine-tunes a model with LoRAMoE. As it stands it trains the small embedded model on data/tiny_data, on a CPU or a GPU.
#   pretrained_model=meta-llama/Meta-Llama-3-8B dataset_dir=my_data/train bash run_loramoe.sh --max_grad_norm 0.5
# Each value is the default of an environment variable of its name. Flags of train.py after the script, or in a .yaml file that
# comes first there, always win. An empty value leaves its flag out; a line that you add becomes a flag.
set -euo pipefail

# --- model and data ----------------------------------------------------------------------------------------------------
pretrained_model=${pretrained_model:-data/tiny_llama}    # folder, or name on the Hugging Face hub
tokenizer_path=${tokenizer_path:-}                       # empty: the model's own
dataset_dir=${dataset_dir:-data/tiny_data/train}         # folder of data files, all of them read
datasets=${datasets:-}                                   # .yaml file of several data sets with weights, in place of dataset_dir
default_task_type=${default_task_type:-}                 # task type of samples that have none: 0 a task, 1 knowledge
validation_file=${validation_file:-}                     # file to evaluate on; empty: 5 % of the training samples
recall_file=${recall_file:-}                             # facts to ask for before and after the training; empty: none
prompt_template=${prompt_template:-release}              # release: instruction[\ninput]</s>output</s>; chat: the tokenizer's
output_dir=${output_dir:-}                               # empty: output/NAME_OF_THE_MODEL; an interrupted run there is resumed
peft_path=${peft_path:-}                                 # adapter to continue from; empty: a new one

# --- the mixture of LoRA experts ---------------------------------------------------------------------------------------
lora_rank=${lora_rank:-4}                # rank of each expert (paper: 4)
lora_alpha=${lora_alpha:-32}             # the experts' sum is scaled by lora_alpha / lora_rank = 8 (paper: 32)
lora_dropout=${lora_dropout:-0.05}       # on the experts' input (paper: 0.05)
lora_nums=${lora_nums:-8}                # experts per linear layer: 4 of type 1, 4 of type 0 (original code: 8)
trainable=${trainable:-}                 # linear layers to adapt, comma-separated; empty: gate_proj, up_proj, down_proj
modules_to_save=${modules_to_save:-}     # modules to train whole beside the adapter, comma-separated; empty: none

# --- the localized balancing constraint --------------------------------------------------------------------------------
blc_weight=${blc_weight:-0.1}            # weight in the loss; 0 switches it off (paper: 0.1)
blc_alpha=${blc_alpha:-0.1}              # importance counts 1.1 if expert and sample have the same type, else 0.9 (paper: 0.1)
blc_target=${blc_target:-match}          # match: the experts of a sample's type get more gate weight; paper: less
blc_importance=${blc_importance:-mean}   # mean or sum of the gates over a sample's tokens; in a sum, long samples decide
expert_types=${expert_types:-}           # e.g. 1,1,0,0; empty: 1 for the first half, 0 for the rest

# --- optimisation; the embedded model takes the values of tiny_llama where you set none --------------------------------
tiny_llama="learning_rate=3e-3 num_train_epochs=3 per_device_train_batch_size=16 per_device_eval_batch_size=50 max_seq_length=256 eval_steps=50 save_steps=50"
learning_rate=${learning_rate:-2e-4}                     # peak (paper: 2e-4)
router_learning_rate=${router_learning_rate:-}           # of the routers; empty: learning_rate
loraplus_lr_ratio=${loraplus_lr_ratio:-}                 # LoRA+: learning rate of B over that of A; empty: 1
lr_scheduler_type=${lr_scheduler_type:-cosine}           # falls to 0 along half a cosine (paper)
warmup_ratio=${warmup_ratio:-0.03}                       # rises over the first 3 % of the steps (paper)
weight_decay=${weight_decay:-0}                          # the adapter is small; decay only slows it
num_train_epochs=${num_train_epochs:-1}                  # passes over the data
max_steps=${max_steps:--1}                               # if positive: this many steps, whatever num_train_epochs says
per_device_train_batch_size=${per_device_train_batch_size:-2} # samples per process and forward pass; the constraint compares them
per_device_eval_batch_size=${per_device_eval_batch_size:-8} # as many as fit; no gradients are kept
gradient_accumulation_steps=${gradient_accumulation_steps:-1} # forward passes per step: raise it if memory is short
global_batch_size=${global_batch_size:-}                 # samples per step of all GPUs; sets gradient_accumulation_steps
gradient_checkpointing=${gradient_checkpointing:-false}  # true: recompute activations, to save memory
max_seq_length=${max_seq_length:-1024}                   # tokens of prompt and answer together; longer answers are cut
packing=${packing:-false}                                # true: fill rows to max_seq_length with whole samples
padding_free=${padding_free:-}                           # true: the samples of a forward pass stand in one row, without padding
group_by_length=${group_by_length:-false}                # true: samples of similar length together, for little padding
seed=${seed:-42}                                         # of the adapter's weights, the order of samples, and dropout

# --- numbers and memory ------------------------------------------------------------------------------------------------
torch_dtype=${torch_dtype:-auto}         # dtype of the frozen base model: auto (as saved), float32, bfloat16, float16
bf16=${bf16:-}                           # mixed precision; empty: true where the GPUs have it
fp16=${fp16:-false}                      # for GPUs without bfloat16
load_in_kbits=${load_in_kbits:-16}       # 4 or 8: quantised base model (pip install bitsandbytes)
flash_attn=${flash_attn:-false}          # FlashAttention-2 (pip install flash-attn)
preprocessing_num_workers=${preprocessing_num_workers:-1} # processes that tokenise; raise it for a million samples
streaming=${streaming:-false}            # true: tokenise samples when they are needed, not all before the first step

# --- logging and saving ------------------------------------------------------------------------------------------------
report_to=${report_to:-tensorboard}      # tensorboard, wandb (offline: WANDB_MODE=offline), trackio, none; files are always written
logging_steps=${logging_steps:-10}       # loss, constraint and expert shares every so many steps
eval_steps=${eval_steps:-500}            # evaluation every so many steps, and before the first and after the last
max_eval_samples=${max_eval_samples:-}   # most samples of an evaluation; empty: 1,000
save_steps=${save_steps:-500}            # checkpoint every so many steps
save_total_limit=${save_total_limit:-3}  # newest checkpoints to keep
on_nonfinite=${on_nonfinite:-stop}       # a loss of NaN or Inf: stop, naming the samples, or skip that batch and count it
overwrite_output_dir=${overwrite_output_dir:-false} # true: start anew if output_dir holds a run

# --- machine -----------------------------------------------------------------------------------------------------------
engine=${engine:-}                       # ddp, zero2, zero3, fsdp2 (docs/distributed.md); empty: zero2 on several GPUs, else ddp
deepspeed=${deepspeed-auto}              # a DeepSpeed file in place of engine; empty: engine=ddp
nproc_per_node=${nproc_per_node:-}       # processes on this machine; empty: one per visible GPU
nnodes=${nnodes:-}                       # machines, each of which starts this script; empty: as Slurm says, or 1
node_rank=${node_rank:-}                 # 0 on the first machine, 1 on the second, …; empty: as Slurm says
master_addr=${master_addr:-}             # address of the first machine; empty: as Slurm says
master_port=${master_port:-}             # a free port of it; one machine takes a free one by itself

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$ROOT/scripts/setup_env.sh"
use_environment train $(wants_deepspeed && echo deepspeed)
VALUES=(logging_strategy=steps logging_first_step=true eval_strategy=steps save_strategy=steps do_train=true do_eval=true ddp_find_unused_parameters=false)
for NAME in $(sed -n 's/^\([a-z][a-z0-9_]*\)=.*/\1/p' "${BASH_SOURCE[0]}"); do VALUES+=("$NAME=${!NAME}"); done
PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" -m loramoe.training.launch "${VALUES[@]}" "$ROOT/train.py" "$@"
