#!/usr/bin/env bash
# LoRAMoE in LLaMA-Factory, by the recipe of integrations/llamafactory: some steps on the small model, by LLaMA-Factory's own command
# line. The tests compute the loss that it logs again, without LLaMA-Factory.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment llamafactory
# Of its own list, torchvision, torchdata, av and gradio are not needed to train on text. torchaudio is, at import alone; its compiled
# parts are of the CUDA build and would not load beside a torch for the CPU, without them it works.
"$PYTHON" -m pip install --disable-pip-version-check --quiet --no-deps llamafactory==0.9.5 torchaudio==2.11.0
rm -f "$PWD"/.venv-llamafactory/lib/python3.*/site-packages/torchaudio/lib/*.so
versions llamafactory transformers peft trl torch
export PYTHONPATH=$PWD

recipe=integrations/llamafactory
out=output/llamafactory
rm -rf "$out"
show python $recipe/new_adapter.py --model_name_or_path "$BASE" --lora_nums 8 --output $out/new
show llamafactory-cli train $recipe/tiny.yaml do_train=false adapter_name_or_path=null tokenized_path=$out/tokenised
show python $recipe/add_task_types.py data/tiny_data/train/train.json $out/tokenised $out/typed --tokenizer "$BASE"
show llamafactory-cli train $recipe/tiny.yaml
check tests/ecosystem/test_llamafactory.py
