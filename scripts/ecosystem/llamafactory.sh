#!/usr/bin/env bash
# LoRAMoE in LLaMA-Factory, by the four commands of docs/ecosystem.md: some steps on the small model, by LLaMA-Factory's own command
# line. The tests compute the loss that it logs again, without LLaMA-Factory.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment llamafactory
# Of its own list, torchvision, torchdata, av and gradio are not needed to train on text. torchaudio is, at import alone; its compiled
# parts are of the CUDA build and would not load beside a torch for the CPU, without them it works.
"$PYTHON" -m pip install --disable-pip-version-check --quiet --no-deps llamafactory==0.9.5 torchaudio==2.11.0
rm -f "$PWD"/.venv-llamafactory/lib/python3.*/site-packages/torchaudio/lib/*.so
versions llamafactory transformers peft trl torch
export PYTHONPATH=$PWD

recipe=examples/integrations/llamafactory.yaml
out=output/llamafactory
rm -rf "$out"
show python -c "import loramoe, peft, transformers
model = transformers.AutoModelForCausalLM.from_pretrained('$BASE')
config = peft.LoraMoeConfig(r=4, lora_alpha=32, lora_nums=8, task_type='CAUSAL_LM')
peft.get_peft_model(model, config).save_pretrained('$out/new')"
show llamafactory-cli train $recipe do_train=false adapter_name_or_path=null tokenized_path=$out/tokenised
show python -c "import datasets, loramoe.data
samples = loramoe.data.read_samples('data/tiny_data/train/train.json')
tokenised = datasets.load_from_disk('$out/tokenised')
tokenised['train'] = tokenised['train'].add_column('task_types', [sample.task_type for sample in samples])
tokenised.save_to_disk('$out/typed')"
show llamafactory-cli train $recipe
check tests/ecosystem/test_llamafactory.py
