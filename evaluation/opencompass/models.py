# ruff: noqa: SIM112 -- lower-case variables, as those of run_loramoe.sh
"""The models to evaluate: a base model and the same with an adapter, in both of OpenCompass's classes for base models.

Environment variables choose what is loaded, named as in run_loramoe.sh:

    pretrained_model=meta-llama/Llama-2-7b-hf peft_path=/path/to/sft_lora_model num_gpus=1 opencompass …

`HuggingFaceCausalLM` takes one prompt at a time: exact, with transformers 4 and 5. `HuggingFaceBaseModel` takes batches
and needs transformers 4: fast and exact for generation, but its perplexities are exact one prompt at a time only, as it
pads on the left and counts how well the padding predicts the first token. See docs/evaluation.md.
"""

import os

from opencompass.models import HuggingFaceBaseModel, HuggingFaceCausalLM

root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
tiny = os.path.join(root, "data", "tiny_llama")
pretrained_model = os.environ.get("pretrained_model", tiny)
peft_path = os.environ.get("peft_path", os.path.join(root, "output", "tiny_llama", "sft_lora_model"))
num_gpus = int(os.environ.get("num_gpus", "0"))  # of one model; each model is a task of its own
# Asked for in this way as an import within a configuration is lazy: it gives a name, not the package.
transformers_4 = __import__("transformers").__version__.startswith("4.")

common = {
    "path": pretrained_model,
    "tokenizer_path": pretrained_model,
    # Named, as HuggingFaceCausalLM loads float16 otherwise.
    "model_kwargs": {"device_map": "auto", "torch_dtype": "torch.bfloat16"}
    if num_gpus
    else {"torch_dtype": "torch.float"},
    "max_seq_len": int(os.environ.get("max_seq_len", "256" if pretrained_model == tiny else "2048")),
    "max_out_len": 100,  # where a data set does not say how long its answers may be
    "batch_size": 1,
    "run_cfg": {"num_gpus": num_gpus},
}

causal_lm = [
    {"type": HuggingFaceCausalLM, "abbr": "causal_lm-base", **common},
    {"type": HuggingFaceCausalLM, "abbr": "causal_lm-adapter", "peft_path": peft_path, **common},
]
base_model = [
    {"type": HuggingFaceBaseModel, "abbr": "base_model-base", **common},
    {"type": HuggingFaceBaseModel, "abbr": "base_model-adapter", "peft_path": peft_path, **common},
]
