"""The formulas of memory: counts against real models, bytes of states against a real optimiser's, tables of today."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe import LoraMoeConfig
from loramoe.training.memory import ENGINES, GIB, MODELS, Plan, Shape, main, memory_per_gpu, table

ROOT = Path(__file__).parents[2]

# As their config.json have it.
LLAMA_2 = {
    "7B": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "13B": {"num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40},
    "70B": {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
    | {"num_key_value_heads": 8},
}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 64}


def built(config: LlamaConfig, experts: int, rank: int, device: str = "meta") -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        base = LlamaForCausalLM(config)
    options = {"r": rank, "lora_nums": experts, "blc_weight": 0, "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraMoeConfig(**options), low_cpu_mem_usage=device == "meta")


def counts(model: torch.nn.Module) -> tuple[int, int]:
    """Frozen and trained."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(p.numel() for p in model.parameters()) - trained, trained


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_llama_2(name: str):
    config = LlamaConfig(**LLAMA_2[name], tie_word_embeddings=False)
    assert Shape.of(config) == MODELS[name]
    assert counts(built(config, 8, 4)) == (MODELS[name].parameters, MODELS[name].adapter_parameters(8, 4))


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_of_another_shape(tied: bool):
    config = LlamaConfig(**SMALL, tie_word_embeddings=tied)
    shape = Shape.of(config)
    assert counts(built(config, 5, 3)) == (shape.parameters, shape.adapter_parameters(5, 3))


def test_what_training_an_adapter_holds():
    model = built(LlamaConfig(**SMALL), 4, 2, device="cpu")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    ids = torch.arange(3, 23).reshape(2, 10)
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    moments = [m for p in trained for m in (optimiser.state[p]["exp_avg"], optimiser.state[p]["exp_avg_sq"])]
    held = sum(t.nbytes for t in [*trained, *(p.grad for p in trained), *moments])
    shape = Shape.of(model.config)
    buckets = 4 * shape.adapter_parameters(4, 2)  # of DDP, beside the gradients
    assert memory_per_gpu(shape, Plan("ddp", experts=4, rank=2))["adapter"] == held + buckets


def test_sharding_divides_what_it_says():
    one, eight = (memory_per_gpu(MODELS["7B"], Plan("zero3", gpus)) for gpus in (1, 8))
    assert (one["base"], one["adapter"]) == (8 * eight["base"], 8 * eight["adapter"])
    assert one["activations"] == eight["activations"]
    assert memory_per_gpu(MODELS["7B"], Plan("zero2", 8))["base"] == one["base"]


def test_four_bits_are_of_the_linears_alone():
    shape = MODELS["7B"]
    quantised = shape.layers * shape.linears_of_layer
    whole = memory_per_gpu(shape, Plan("ddp", bits=4))["base"]
    assert whole == pytest.approx(quantised * 0.516 + 4 * (shape.parameters - quantised), rel=1e-3)


def test_checkpointing_keeps_less():
    plain, less = (memory_per_gpu(MODELS["7B"], Plan(checkpointing=c))["activations"] for c in (False, True))
    assert less < plain / 4


def test_plans_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"bits must be 4, 8 or 16; got bits=3"):
        Plan(bits=3)
    with pytest.raises(ValueError, match=r"zero3 shards the base model.*got bits=4. Set engine to ddp"):
        Plan("zero3", bits=4)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_in_the_page_is_of_today(name: str):
    assert table(name) in (ROOT / "docs/distributed.md").read_text(encoding="utf-8")


def test_the_command(capsys: pytest.CaptureFixture[str]):
    main(["--model", "7B", "--gpus", "8", "--bits", "4"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"7B: {MODELS['7B'].parameters:,} parameters, adapter {MODELS['7B'].adapter_parameters(8, 4):,}"
    assert [line.split()[0] for line in lines] == list(ENGINES)
    total = sum(memory_per_gpu(MODELS["7B"], Plan("ddp", 8, bits=4)).values()) / GIB
    assert f"{total:.1f} GiB" in lines[0]
    assert "shards the base model" in lines[-1]


def test_the_command_on_a_folder(tiny_task, capsys: pytest.CaptureFixture[str]):
    main(["--model", str(tiny_task.base), "--engine", "zero2"])
    assert f"{Shape(2, 32, 48, 32, 32, 64).parameters:,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "./none"], "--model must be 7B, 13B, 70B, or a folder or name with a config.json; got './none': "),
        (["--gpus", "0"], "argument --gpus: expected a whole number of at least 1, got '0'. Raise it."),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code != 0
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("python -m loramoe.training.memory: ")
    assert message in said
