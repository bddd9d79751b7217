#!/usr/bin/env bash
# Fine-tunes a model with LoRAMoE. As it stands it trains the small embedded model on data/tiny_data, on a CPU or a GPU.
#
#   bash run_loramoe.sh
#   pretrained_model=meta-llama/Llama-2-7b-hf dataset_dir=my_rows/train validation_file=my_rows/test.json bash run_loramoe.sh
#   bash run_loramoe.sh --max_seq_length 512            # any flag of train.py comes last and wins
#
# Every value below is the default of an environment variable of its name: edit it here, or set it for one run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# last_of FLAG VALUE ARGUMENTS…: what the arguments set a flag to, where the last one wins, or VALUE where they do not.
last_of() {
    local name=$1 value=$2
    shift 2
    while (($#)); do
        case $1 in
            --"$name" | --"${name//_/-}") value=${2-$value} ;;
            --"$name"=* | --"${name//_/-}"=*) value=${1#*=} ;;
        esac
        shift
    done
    printf '%s\n' "$value"
}

# --- what to train, on what -------------------------------------------------------------------------------------------
pretrained_model=${pretrained_model:-data/tiny_llama}    # folder, or name on the Hugging Face hub
dataset_dir=${dataset_dir:-data/tiny_data/train}         # folder of .json and .jsonl files, all of them read
# Other values follow from these two, and so from their flags.
pretrained_model=$(last_of model_name_or_path "$pretrained_model" "$@")
dataset_dir=$(last_of dataset_dir "$dataset_dir" "$@")
tokenizer_path=${tokenizer_path:-$pretrained_model}      # the base model's own unless you say otherwise
validation_file=${validation_file:-}                     # file to evaluate on; empty: 5 % of the training rows
recall_file=${recall_file:-}                             # facts to ask for before and after; empty: none
prompt_template=${prompt_template:-release}              # release: instruction[\ninput]</s>output</s>; chat: the tokenizer's
output_dir=${output_dir:-output/$(basename -- "$pretrained_model")} # an interrupted run there is resumed
peft_path=${peft_path:-}                                 # adapter to continue from; empty: a new one
# The embedded model and its data belong together: their validation rows and facts are the default for them.
if [[ $dataset_dir == data/tiny_data/train ]]; then validation_file=${validation_file:-data/tiny_data/test.json}; fi
if [[ $pretrained_model == data/tiny_llama ]]; then recall_file=${recall_file:-data/tiny_data/recall.json}; fi

# --- the mixture of LoRA experts --------------------------------------------------------------------------------------
lora_rank=${lora_rank:-4}                # rank of each expert (paper: 4)
lora_alpha=${lora_alpha:-32}             # the experts' sum is scaled by lora_alpha / lora_rank = 8 (paper: 32)
lora_dropout=${lora_dropout:-0.05}       # on the experts' input (paper: 0.05)
lora_nums=${lora_nums:-8}                # experts beside each linear: 4 of type 1, 4 of type 0 (release: 8)
trainable=${trainable:-}                 # linears to adapt, comma-separated; empty: gate_proj, up_proj, down_proj
modules_to_save=${modules_to_save:-}     # modules trained whole beside the adapter, comma-separated; empty: none

# --- the localized balancing constraint -------------------------------------------------------------------------------
blc_weight=${blc_weight:-0.1}            # weight in the loss; 0 switches it off (paper: 0.1)
blc_alpha=${blc_alpha:-0.1}              # importance counts 1.1 where expert and sample are of one type, else 0.9 (paper: 0.1)
blc_target=${blc_target:-match}          # match: the experts of a sample's type get more gate weight; paper: less
blc_importance=${blc_importance:-mean}   # mean or sum of the gates over a sample's tokens; a sum lets long samples decide
expert_types=${expert_types:-}           # e.g. 1,1,0,0; empty: 1 for the first half, 0 for the rest

# --- optimisation -----------------------------------------------------------------------------------------------------
if [[ $pretrained_model == data/tiny_llama ]]; then
    # Its own values, so that the first run learns visibly in a minute or two on a CPU: a model of 1.3 million parameters
    # wants a larger step than one of 7 billion, and 800 rows want to be seen more than once.
    learning_rate=${learning_rate:-3e-3}
    num_train_epochs=${num_train_epochs:-3}               # 150 steps of 16 rows
    per_device_train_batch_size=${per_device_train_batch_size:-16}
    per_device_eval_batch_size=${per_device_eval_batch_size:-50}
    max_seq_length=${max_seq_length:-256}                 # the positions that it knows
    eval_steps=${eval_steps:-50}                          # once an epoch
    save_steps=${save_steps:-50}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}          # its matrices are too small to share out among threads
fi
learning_rate=${learning_rate:-2e-4}                     # peak (paper: 2e-4)
lr_scheduler_type=${lr_scheduler_type:-cosine}           # falls to 0 along half a cosine (paper)
warmup_ratio=${warmup_ratio:-0.03}                       # rises over the first 3 % of the steps (paper)
weight_decay=${weight_decay:-0}                          # the adapter is small; decay only slows it
num_train_epochs=${num_train_epochs:-1}                  # times through the data
max_steps=${max_steps:--1}                               # if positive: this many steps, whatever num_train_epochs says
per_device_train_batch_size=${per_device_train_batch_size:-2} # rows per process and forward; the constraint compares them
per_device_eval_batch_size=${per_device_eval_batch_size:-8} # as many as fit; no gradients are kept
gradient_accumulation_steps=${gradient_accumulation_steps:-1} # forwards per step: raise it where memory is short
gradient_checkpointing=${gradient_checkpointing:-false}  # true: recompute activations, for memory
max_seq_length=${max_seq_length:-1024}                   # tokens of prompt and answer together; longer answers are cut
packing=${packing:-false}                                # true: no padding, the rows of a forward stand in one row
group_by_length=${group_by_length:-false}                # true: rows of similar length together, for little padding
seed=${seed:-42}                                         # of the adapter's start, the order of rows, and dropout

# --- numbers, memory --------------------------------------------------------------------------------------------------
torch_dtype=${torch_dtype:-auto}         # dtype of the frozen base: auto (as saved), float32, bfloat16, float16
bf16=${bf16:-}                           # mixed precision; empty: true on GPUs that have it
fp16=${fp16:-false}                      # for GPUs without bfloat16
load_in_kbits=${load_in_kbits:-16}       # 4 or 8: quantised base (pip install bitsandbytes)
flash_attn=${flash_attn:-false}          # FlashAttention-2 (pip install flash-attn)
preprocessing_num_workers=${preprocessing_num_workers:-1} # processes that tokenise; raise it for a million rows
streaming=${streaming:-false}            # true: tokenise rows when they are needed, in place of all before the first step

# --- logging, saving --------------------------------------------------------------------------------------------------
report_to=${report_to:-tensorboard}      # tensorboard, wandb (offline: WANDB_MODE=offline), trackio, or none; files are written always
logging_steps=${logging_steps:-10}       # loss, constraint and expert shares every so many steps
eval_steps=${eval_steps:-500}            # evaluation every so many steps, and always before the first and after the last
save_steps=${save_steps:-500}            # checkpoint every so many steps
save_total_limit=${save_total_limit:-3}  # newest checkpoints to keep
on_nonfinite=${on_nonfinite:-stop}       # a loss of NaN or Inf: stop, naming the rows, or skip that batch and count it
overwrite_output_dir=${overwrite_output_dir:-false} # true: start anew where output_dir holds a run

# --- processes --------------------------------------------------------------------------------------------------------
# The GPUs to use, comma-separated: those of CUDA_VISIBLE_DEVICES up to the first negative one, as CUDA reads it, or else all.
visible_gpus() {
    local there named
    there=$(nvidia-smi -L 2>/dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p' | paste -sd , -) || true
    if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then echo "$there" && return; fi
    named=$(sed -E 's/[[:space:]]//g; s/(^|,)-.*//' <<<"$CUDA_VISIBLE_DEVICES")
    if [[ -n $there ]]; then echo "$named" && return; fi
    # A job's environment, or a shell's profile, may name GPUs on a machine that has none.
    if [[ -n $named ]]; then
        echo "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES, but nvidia-smi lists no GPU, so the CPU is used." \
            "If there is a GPU, make nvidia-smi -L list it." >&2
    fi
}
# bfloat16 came with compute capability 8.0. Of GPUs named otherwise than by index (GPU-…, MIG-…), all of the machine are asked.
has_bf16() {
    local query=(--query-gpu=compute_cap --format=csv,noheader) capabilities
    [[ $CUDA_VISIBLE_DEVICES =~ ^[0-9,]+$ ]] && query+=(-i "$CUDA_VISIBLE_DEVICES")
    capabilities=$(nvidia-smi "${query[@]}" 2>/dev/null) && ! grep -qv '^\([89]\|[1-9][0-9]\)\.' <<<"$capabilities"
}

IFS=, read -ra visible <<<"$(visible_gpus)"
gpus=${#visible[@]}
nnodes=${nnodes:-1}                      # machines; start this script on each of them, with the same master_addr
node_rank=${node_rank:-0}                # 0 on the first machine, 1 on the second, …
nproc_per_node=${nproc_per_node:-$((gpus > 0 ? gpus : 1))} # processes on this machine: one per GPU
master_addr=${master_addr:-127.0.0.1}    # address of the first machine
master_port=${master_port:-29500}        # a free port of it
# A GPU without a process of its own is hidden: the Trainer would share a lone process among all GPUs that it sees.
if ((gpus > 0)); then export CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${visible[*]:0:nproc_per_node}"); fi
if ((gpus > 0)); then deepspeed=${deepspeed-ds_config.json}; fi # ZeRO-2 on GPUs; deepspeed= (empty) for plain DDP
deepspeed=${deepspeed:-}
if [[ -z $bf16 ]]; then if ((gpus > 0)) && [[ $fp16 != true ]] && has_bf16; then bf16=true; else bf16=false; fi; fi

# --- go ---------------------------------------------------------------------------------------------------------------
source scripts/setup_env.sh
use_environment train ${deepspeed:+deepspeed}

flags=(
    --model_name_or_path "$pretrained_model" --tokenizer_name_or_path "$tokenizer_path"
    --dataset_dir "$dataset_dir" --output_dir "$output_dir" --prompt_template "$prompt_template"
    --max_seq_length "$max_seq_length" --preprocessing_num_workers "$preprocessing_num_workers"
    --lora_rank "$lora_rank" --lora_alpha "$lora_alpha" --lora_dropout "$lora_dropout" --lora_nums "$lora_nums"
    --blc_weight "$blc_weight" --blc_alpha "$blc_alpha" --blc_target "$blc_target"
    --blc_importance "$blc_importance"
    --learning_rate "$learning_rate" --lr_scheduler_type "$lr_scheduler_type" --warmup_ratio "$warmup_ratio"
    --weight_decay "$weight_decay" --num_train_epochs "$num_train_epochs" --max_steps "$max_steps"
    --per_device_train_batch_size "$per_device_train_batch_size"
    --per_device_eval_batch_size "$per_device_eval_batch_size"
    --gradient_accumulation_steps "$gradient_accumulation_steps"
    --gradient_checkpointing "$gradient_checkpointing" --seed "$seed"
    --packing "$packing" --group_by_length "$group_by_length" --streaming "$streaming"
    --torch_dtype "$torch_dtype" --bf16 "$bf16" --fp16 "$fp16" --load_in_kbits "$load_in_kbits" --flash_attn "$flash_attn"
    --report_to "$report_to" --logging_strategy steps --logging_steps "$logging_steps" --logging_first_step true
    --eval_strategy steps --eval_steps "$eval_steps" --save_strategy steps --save_steps "$save_steps"
    --save_total_limit "$save_total_limit" --overwrite_output_dir "$overwrite_output_dir"
    --on_nonfinite "$on_nonfinite"
    --ddp_find_unused_parameters false --do_train true --do_eval true
)
[[ -n $validation_file ]] && flags+=(--validation_file "$validation_file")
[[ -n $recall_file ]] && flags+=(--recall_file "$recall_file")
[[ -n $peft_path ]] && flags+=(--peft_path "$peft_path")
[[ -n $trainable ]] && flags+=(--trainable "$trainable")
[[ -n $modules_to_save ]] && flags+=(--modules_to_save "$modules_to_save")
[[ -n $expert_types ]] && flags+=(--expert_types "$expert_types")
[[ -n $deepspeed ]] && flags+=(--deepspeed "$deepspeed")
if ((gpus == 0)); then
    flags+=(--use_cpu true)
    export DS_ACCELERATOR=cpu
fi

if ((nnodes * nproc_per_node == 1)) && [[ -z $deepspeed ]]; then
    launcher=("$PYTHON") # one process needs no rendezvous
else
    launcher=("$PYTHON" -m loramoe.training.launch --nnodes "$nnodes" --node_rank "$node_rank"
        --nproc_per_node "$nproc_per_node" --master_addr "$master_addr" --master_port "$master_port")
fi
exec "${launcher[@]}" train.py "${flags[@]}" "$@"
