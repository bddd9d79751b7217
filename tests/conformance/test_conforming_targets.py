"""What PEFT promises of which modules are adapted, with which rank and alpha, and of those that cannot be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from loramoe import LoraMoeConfig
from tests.conformance.small import Deep, Mlp, config, later_peft, rows, seeded
from tests.helpers import layers_of

Maker = Callable[..., Any]


def adapted_linears(model: Any) -> list[str]:
    return [name.removeprefix("base_model.model.") for name in layers_of(model)]


# --- which modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target_modules": "lin0"}, ["lin0"]),
        ({"target_modules": "lin.*"}, ["lin0", "lin1"]),
        ({"target_modules": ["lin0", "lin1"]}, ["lin0", "lin1"]),
        ({"target_modules": "all-linear"}, ["lin0", "lin1"]),
        ({"target_modules": "lin.*", "exclude_modules": "lin0"}, ["lin1"]),
        ({"target_modules": ["lin0", "lin1"], "exclude_modules": ["lin0"]}, ["lin1"]),
        ({"target_modules": "all-linear", "exclude_modules": ["lin1"]}, ["lin0"]),
    ],
)
def test_names_of_what_is_adapted(options: dict[str, Any], wanted: list[str]) -> None:
    model = get_peft_model(Mlp(), LoraMoeConfig(**options))
    assert model.targeted_module_names == adapted_linears(model) == wanted


def test_all_linear_leaves_the_head_alone(tiny_llama: Maker) -> None:
    model = get_peft_model(tiny_llama(), LoraMoeConfig(target_modules="all-linear"))
    assert len(layers_of(model)) == 2 * 7
    assert not [name for name in adapted_linears(model) if "lm_head" in name]


def test_all_linear_leaves_a_classifier_alone() -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForSequenceClassification(LlamaConfig(**size, vocab_size=20))
    model = get_peft_model(base, LoraMoeConfig(target_modules="all-linear", task_type="SEQ_CLS"))
    assert "score" not in adapted_linears(model)
    assert model.modules_to_save >= {"score"}


@later_peft
@pytest.mark.parametrize("layers_pattern", ["layers", ["h", "layers"]])
def test_layers_are_counted_and_not_what_is_inside_them(layers_pattern: Any) -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            experts = (nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 4)}) for _ in "01"]) for _ in "012")
            self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 4), "experts": list_}) for list_ in experts])

    model = get_peft_model(Sparse(), config("q", "up", layers_to_transform=[1], layers_pattern=layers_pattern))
    assert set(adapted_linears(model)) == {"layers.1.q", "layers.1.experts.0.up", "layers.1.experts.1.up"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["nowhere"]}, r"Target modules .* not found in the base model"),
        ({"target_modules": "lin", "exclude_modules": ["lin0"]}, r"No modules were targeted|not found in the base"),
        ({"target_modules": ["lin0"], "exclude_modules": ["lin0"]}, "No modules were targeted for adaptation"),
        ({"target_modules": ["lin0", "lin1"], "exclude_modules": ["lin0", "lin1"]}, "All modules were excluded"),
    ],
)
def test_no_module_at_all_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(Mlp(), LoraMoeConfig(**options))


def test_exclusions_that_meet_nothing_are_told() -> None:
    with pytest.warns(UserWarning, match=r"You have passed exclude_modules=.* but no modules were excluded"):
        get_peft_model(Mlp(), config("lin0", exclude_modules=["nowhere"]))


def test_many_names_are_condensed_and_saved_so(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = [nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)}) for _ in range(25)]
            self.blocks = nn.ModuleList(blocks)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block["query"](x)
            return x

    model = get_peft_model(seeded(Wide), config(*(f"blocks.{n}.query" for n in range(25)))).eval()
    assert model.peft_config["default"].target_modules == {"query"}
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(seeded(Wide), tmp_path)(rows(4)), model(rows(4)))


# --- with which rank and alpha ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ({"lin0": 5}, {"0.lin0": 5, "1.lin0": 5, "2.lin0": 5}),
        ({"layers.1.lin0": 5}, {"1.lin0": 5}),
        ({"^layers.1.lin0": 5}, {"1.lin0": 5}),
        ({r"layers.[12].lin\d": 5}, {"1.lin0": 5, "2.lin0": 5, "1.lin1": 5, "2.lin1": 5}),
        ({"layers.0.lin0": 5, "lin0": 6}, {"0.lin0": 5, "1.lin0": 6, "2.lin0": 6}),
        ({"in0": 5, "layers": 5, "^lin0": 5}, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
def test_patterns_of_ranks_and_alphas(pattern: dict[str, int], wanted: dict[str, int]) -> None:
    model = get_peft_model(
        Deep(),
        LoraMoeConfig(target_modules="all-linear", r=2, lora_alpha=1, rank_pattern=pattern, alpha_pattern=pattern),
    )
    layers = {name.removeprefix("base_model.model.layers."): layer for name, layer in layers_of(model).items()}
    assert {name: layer.r["default"] for name, layer in layers.items()} == dict.fromkeys(layers, 2) | wanted
    assert all(layer.scaling["default"] == (1 if name in wanted else 0.5) for name, layer in layers.items())


@later_peft
def test_patterns_that_meet_nothing_are_told() -> None:
    with pytest.warns(RuntimeWarning, match=r"rank_pattern keys did not match any targeted module .*\['nowhere'\]"):
        get_peft_model(Mlp(), config("lin0", rank_pattern={"nowhere": 3}))


def test_ranks_of_several_adapters_are_their_own() -> None:
    model = get_peft_model(Deep(), config("lin0", rank_pattern={"layers.0.lin0": 7}))
    model.add_adapter("other", config("lin0", rank_pattern={"layers.1.lin0": 8}))
    assert [layer.r for layer in layers_of(model).values()] == [
        {"default": 7, "other": 2},
        {"default": 2, "other": 8},
        {"default": 2, "other": 2},
    ]


# --- what cannot be adapted -------------------------------------------------------------------------------------------


class Mixed(Mlp):
    """Linears, and modules that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 10)
        self.conv1 = nn.Conv1d(10, 10, 1)
        self.conv2 = nn.Conv2d(1, 1, 1)
        self.gru = nn.GRU(10, 10)
        self.norm = nn.LayerNorm(10)
        self.attention = nn.MultiheadAttention(10, 2)


@pytest.mark.parametrize("name", ["emb", "conv1", "conv2", "gru", "norm", "attention"])
def test_what_is_no_linear_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"LoRAMoE adapts linear layers; got \w+. Leave it out of target_modules, or"):
        get_peft_model(Mixed(), config("lin0", name))


@pytest.mark.parametrize(
    "foreign",
    [
        {"target_parameters": ["lin0.weight"]},
        {"layer_replication": [(0, 1), (0, 1)]},
        {"trainable_token_indices": [0, 1]},
        {"use_dora": True},
        {"bias": "all"},
    ],
    ids=lambda foreign: next(iter(foreign)),
)
def test_what_lora_alone_does_is_refused(foreign: dict[str, Any]) -> None:
    name, value = next(iter(foreign.items()))
    with pytest.raises(ValueError, match=f"mixture of LoRA experts, which does not know {name}=.*Leave it out"):
        LoraConfig(lora_nums=3, target_modules=["lin0"], **{name: value})


# --- weights that are tied --------------------------------------------------------------------------------------------


@pytest.fixture
def tied() -> Maker:
    """Makes a Llama whose head is its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make() -> nn.Module:
        torch.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**size, vocab_size=40, tie_word_embeddings=True)).eval()

    return make


def test_tied_weights_stay_tied_beside_an_adapter(tied: Maker, tmp_path: Path, ids: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tie_word_embeddings")
        model = get_peft_model(tied(), config("up_proj")).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(tied(), tmp_path)(ids).logits, model(ids).logits)


def test_a_tied_head_that_is_adapted_is_told_and_its_embedding_is_not_touched(
    tied: Maker, tmp_path: Path, ids: Tensor
) -> None:
    with pytest.warns(UserWarning, match=r"Model .*`tie_word_embeddings=True` and .* part of the adapter"):
        model = get_peft_model(tied(), config("lm_head")).eval()
    assert torch.equal(model.get_input_embeddings()(ids), tied().get_input_embeddings()(ids))
    assert not torch.allclose(model(ids).logits, tied()(ids).logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(tied(), tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings")
def test_a_tied_embedding_that_is_trained_whole_leaves_the_head(tied: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = get_peft_model(tied(), config("up_proj", modules_to_save=["embed_tokens"])).eval()
    model.get_input_embeddings().modules_to_save["default"].weight.data.add_(1)
    assert torch.equal(model.get_output_embeddings().weight, tied().get_output_embeddings().weight)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(tied(), tmp_path)(ids).logits, model(ids).logits)
