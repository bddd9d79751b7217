# ruff: noqa: SIM112 -- lower-case variables, as those of run_loramoe.sh
"""The benchmarks of the paper's kinds of tasks, base against adapter; the data are yours to bring: docs/evaluation.md.

    COMPASS_DATA_CACHE=/path/to/data PYTHONPATH=/path/to/LoRAMoE num_gpus=1 \
        pretrained_model=meta-llama/Llama-2-7b-hf peft_path=/path/to/sft_lora_model \
        opencompass /path/to/LoRAMoE/evaluation/opencompass/benchmarks.py

All of them run, or those that `benchmarks` names: benchmarks="triviaqa nq RTE". With transformers 4 the generating ones
run in batches of `batch_size`; with transformers 5 OpenCompass 0.5.4 can only generate for one prompt at a time.
"""

import os

from mmengine.config import read_base
from opencompass.openicl.icl_retriever import FixKRetriever

with read_base():
    from opencompass.configs.datasets.flores.flores_gen_aad4fd import flores_datasets
    from opencompass.configs.datasets.nq.nq_gen import nq_datasets
    from opencompass.configs.datasets.race.race_ppl import race_datasets
    from opencompass.configs.datasets.SuperGLUE_AX_b.SuperGLUE_AX_b_ppl import AX_b_datasets
    from opencompass.configs.datasets.SuperGLUE_AX_g.SuperGLUE_AX_g_ppl import AX_g_datasets
    from opencompass.configs.datasets.SuperGLUE_CB.SuperGLUE_CB_ppl import CB_datasets
    from opencompass.configs.datasets.SuperGLUE_MultiRC.SuperGLUE_MultiRC_ppl import MultiRC_datasets
    from opencompass.configs.datasets.SuperGLUE_ReCoRD.SuperGLUE_ReCoRD_gen import ReCoRD_datasets
    from opencompass.configs.datasets.SuperGLUE_RTE.SuperGLUE_RTE_ppl import RTE_datasets
    from opencompass.configs.datasets.SuperGLUE_WSC.SuperGLUE_WSC_ppl import WSC_datasets
    from opencompass.configs.datasets.triviaqa.triviaqa_gen import triviaqa_datasets
    from opencompass.configs.datasets.winogrande.winogrande_ll import winogrande_datasets
    from opencompass.configs.datasets.Xsum.Xsum_gen import Xsum_datasets

    from .models import base_model, causal_lm, transformers_4
    from .own_datasets import closed_book, cnn_dailymail

# Four pairs of 198, each both ways. The same first 8 sentences of the development set are shown before each: choosing
# similar ones, as OpenCompass does, needs faiss and a model from the hub.
languages = ["deu", "fra", "rus", "zho_simpl"]
pairs = [f"flores_100_eng-{language}" for language in languages] + [
    f"flores_100_{language}-eng" for language in languages
]
flores = [dataset for dataset in flores_datasets if dataset["abbr"] in pairs]
for dataset in flores:
    dataset["infer_cfg"]["retriever"] = {"type": FixKRetriever, "fix_id_list": list(range(8))}

by_likelihood = [
    *WSC_datasets, *winogrande_datasets,  # coreference
    *RTE_datasets, *CB_datasets, *AX_b_datasets, *AX_g_datasets,  # inference
    *race_datasets, *MultiRC_datasets,  # reading comprehension
]  # fmt: skip
by_generation = [
    *triviaqa_datasets, *nq_datasets, *closed_book,  # closed-book questions
    *ReCoRD_datasets,  # reading comprehension
    *Xsum_datasets, cnn_dailymail,  # summaries
    *flores,  # translation
]  # fmt: skip

wanted = os.environ.get("benchmarks", "").split()
by_likelihood = [dataset for dataset in by_likelihood if not wanted or dataset["abbr"] in wanted]
by_generation = [dataset for dataset in by_generation if not wanted or dataset["abbr"] in wanted]
datasets = by_likelihood + by_generation

generators = [{**model, "batch_size": int(os.environ.get("batch_size", "8"))} for model in base_model]
generators = generators if transformers_4 else causal_lm
models = causal_lm + generators if transformers_4 else causal_lm
model_dataset_combinations = [
    {"models": causal_lm, "datasets": by_likelihood},
    {"models": generators, "datasets": by_generation},
]

del os  # OpenCompass writes all names of a configuration to a file, which cannot hold a module
