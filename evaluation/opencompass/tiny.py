"""The embedded model with and without its adapter, in both classes, on four small data sets; offline, on a CPU.

PYTHONPATH=/path/to/LoRAMoE opencompass /path/to/LoRAMoE/evaluation/opencompass/tiny.py --debug
"""

from mmengine.config import read_base

with read_base():
    from .models import base_model, causal_lm, transformers_4
    from .tiny_datasets import tiny_datasets

models = causal_lm + (base_model if transformers_4 else [])
datasets = tiny_datasets
