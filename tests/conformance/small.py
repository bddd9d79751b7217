"""Small models on which PEFT's promises are checked: plain modules, and one language model for each task type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraMoeConfig, get_peft_model
from torch import Tensor, nn

# What newer peft promises; in older versions its own LoRA does not keep it either.
later_peft = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.21"), reason="older peft breaks it, for LoRA too"
)


class Mlp(nn.Module):
    """Two linear layers, [B, 10] → [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 20)
        self.lin1 = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin1(self.lin0(x).relu())
        return out


class Deep(nn.Module):
    """Three MLPs, one after the other, in a list named `layers`: [B, 6] → [B, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"lin0": nn.Linear(6, 6), "lin1": nn.Linear(6, 6)}) for _ in "012"])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer["lin1"](layer["lin0"](x).relu())
        return x


def seeded(make: Callable[[], nn.Module]) -> Any:
    """A model in evaluation mode, with the same weights at each call."""
    torch.manual_seed(0)
    return make().eval()


def rows(features: int = 10) -> Tensor:
    """Six inputs, [6, features]."""
    return torch.randn(6, features, generator=torch.Generator().manual_seed(3))


def config(*target_modules: str, **options: Any) -> LoraMoeConfig:
    """Three experts of rank 2 with random weights, on the named layers."""
    settings = {"lora_nums": 3, "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "init_lora_weights": False, **options}
    return LoraMoeConfig(target_modules=list(target_modules) or ["lin0"], **settings)


def llama(kind: str) -> Any:
    """A Llama of one layer, with the head of a task."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = transformers.LlamaConfig(**size, vocab_size=32, pad_token_id=0, num_labels=3, classifier_dropout=0.0)
    return getattr(transformers, f"Llama{kind}")(settings)


def t5() -> Any:
    """An encoder-decoder of one layer each."""
    size = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**size, decoder_start_token_id=0))


class Case(NamedTuple):
    """A model, the options of its adapter, and inputs."""

    make: Callable[[], nn.Module]
    options: dict[str, Any]
    inputs: dict[str, Tensor]

    def base(self) -> Any:
        """The base model, with the same weights at each call."""
        return seeded(self.make)

    def config(self) -> LoraMoeConfig:
        """A new configuration of the adapter."""
        options = dict(self.options)
        return config(*options.pop("targets"), **options)

    def adapted(self, seed: int = 0, **options: Any) -> Any:
        """The base model with an adapter whose weights depend on the seed, in evaluation mode."""
        base = self.base()
        torch.manual_seed(seed)
        return get_peft_model(base, self.config(), **options).eval()

    def output(self, model: Any) -> Tensor:
        """What a model computes of the inputs."""
        out = model(**self.inputs)
        return out if isinstance(out, Tensor) else out[0]


IDS = {"input_ids": torch.arange(2, 12).reshape(2, 5)}
TASKS = {
    kind: Case(lambda head=head: llama(head), {"targets": ["up_proj"], "task_type": kind}, IDS)
    for kind, head in {
        "CAUSAL_LM": "ForCausalLM",
        "SEQ_CLS": "ForSequenceClassification",
        "TOKEN_CLS": "ForTokenClassification",
        "QUESTION_ANS": "ForQuestionAnswering",
        "FEATURE_EXTRACTION": "Model",
    }.items()
}
TASKS["SEQ_2_SEQ_LM"] = Case(
    t5, {"targets": ["wi", "wo"], "task_type": "SEQ_2_SEQ_LM"}, {**IDS, "decoder_input_ids": IDS["input_ids"][:, :3]}
)
CASES = {
    "two layers": Case(Mlp, {"targets": ["lin0", "lin1"], "use_rslora": True}, {"x": rows()}),
    "modules_to_save": Case(Mlp, {"targets": ["lin0"], "modules_to_save": ["lin1"]}, {"x": rows()}),
    "target and modules_to_save": Case(Mlp, {"targets": ["lin0", "lin1"], "modules_to_save": ["lin1"]}, {"x": rows()}),
    "some layers": Case(
        Deep, {"targets": ["lin0"], "layers_to_transform": [0, 2], "layers_pattern": "layers"}, {"x": rows(6)}
    ),
    "SEQ_CLS": TASKS["SEQ_CLS"],
    "SEQ_2_SEQ_LM": TASKS["SEQ_2_SEQ_LM"],
}
if Version(peft.__version__) < Version("0.21"):
    del CASES["some layers"]  # whose layers_pattern older peft reads in another way
each_model = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
