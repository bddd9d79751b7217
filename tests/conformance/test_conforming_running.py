"""What PEFT promises of an adapted model at work: tasks of every kind, generation, checkpointing, compilation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
    LoraMoeConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from torch import Tensor

from loramoe.hooks import last_balance
from tests.conformance.small import Mlp, config, rows, seeded
from tests.helpers import layers_of, trainable

Maker = Callable[..., Any]
SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}


# --- tasks of every kind ----------------------------------------------------------------------------------------------


def llama(kind: str) -> Any:
    made = getattr(transformers, f"Llama{kind}")
    return made(transformers.LlamaConfig(**SIZE, pad_token_id=0, num_labels=3, classifier_dropout=0.0))


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0))


TASKS: dict[str, tuple[Callable[[], Any], list[str], Any, set[str]]] = {
    "CAUSAL_LM": (lambda: llama("ForCausalLM"), ["up_proj"], AutoPeftModelForCausalLM, set()),
    "SEQ_CLS": (
        lambda: llama("ForSequenceClassification"),
        ["up_proj"],
        AutoPeftModelForSequenceClassification,
        {"score"},
    ),
    "TOKEN_CLS": (lambda: llama("ForTokenClassification"), ["up_proj"], AutoPeftModelForTokenClassification, {"score"}),
    "QUESTION_ANS": (
        lambda: llama("ForQuestionAnswering"),
        ["up_proj"],
        AutoPeftModelForQuestionAnswering,
        {"qa_outputs"},
    ),
    "FEATURE_EXTRACTION": (lambda: llama("Model"), ["up_proj"], AutoPeftModelForFeatureExtraction, set()),
    "SEQ_2_SEQ_LM": (t5, ["wi", "wo"], AutoPeftModelForSeq2SeqLM, set()),
}


@pytest.fixture(params=TASKS, ids=str)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, set[str], dict[str, Any], Path]:
    """A model adapted for a task, what loads it by its folder, the modules trained whole, inputs, and the base."""
    make, targets, loader, whole = TASKS[request.param]
    torch.manual_seed(0)
    make().eval().save_pretrained(tmp_path / "base")
    base = make().from_pretrained(tmp_path / "base")
    model = get_peft_model(base, config(*targets, task_type=request.param)).eval()
    inputs = {"input_ids": torch.arange(2, 12).reshape(2, 5)}
    if request.param == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
    return model, loader, whole, inputs, tmp_path


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_every_task_is_trained_saved_and_loaded(task: tuple[Any, Any, set[str], dict[str, Any], Path]) -> None:
    model, loader, whole, inputs, folder = task
    kind = model.peft_config["default"].task_type
    assert type(model).__name__ != "PeftModel"
    trained = trainable(model)
    assert {name.split(".modules_to_save.")[0].split(".")[-1] for name in trained if "loramoe_" not in name} == whole
    model(**inputs)[0].pow(2).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    model.save_pretrained(folder / "adapter")
    loaded = loader.from_pretrained(folder / "adapter").eval()
    assert type(loaded) is type(model)
    assert loaded.peft_config["default"].task_type == kind
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])


LABELS: dict[str, dict[str, Tensor]] = {
    "CAUSAL_LM": {"labels": torch.arange(2, 12).reshape(2, 5)},
    "SEQ_CLS": {"labels": torch.tensor([0, 2])},
    "TOKEN_CLS": {"labels": torch.ones(2, 5, dtype=torch.long)},
    "QUESTION_ANS": {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([1, 2])},
}


@pytest.mark.filterwarnings("ignore:adapter 'default' has blc_weight=2.0, but this training batch came without")
@pytest.mark.parametrize("kind", LABELS)
def test_every_task_has_its_constraint(kind: str) -> None:
    make, targets, *_ = TASKS[kind]
    model = get_peft_model(make(), config(*targets, task_type=kind, blc_weight=2.0)).train()
    batch = {"input_ids": torch.arange(2, 12).reshape(2, 5), **LABELS[kind]}
    with_it = model(**batch, task_types=torch.tensor([0, 1])).loss
    constraint = last_balance(model).constraint
    torch.testing.assert_close(with_it, model(**batch).loss + 2.0 * constraint)
    assert constraint > 0


@pytest.mark.filterwarnings("ignore:adapter 'default' has blc_weight=2.0, but this training batch came without")
@pytest.mark.parametrize("kind", LABELS)
def test_every_task_counts_its_constraint_by_its_share_of_the_step(kind: str, tmp_path: Path) -> None:
    """Two micro-batches of a row each; the Trainer counts their labels, where it does, and the model's loss else."""
    make, targets, *_ = TASKS[kind]
    model = get_peft_model(make(), config(*targets, task_type=kind, blc_weight=2.0)).train()
    rows = {"input_ids": torch.arange(2, 12).reshape(2, 5), **LABELS[kind], "task_types": torch.tensor([0, 1])}
    micro = [{name: value[row : row + 1] for name, value in rows.items()} for row in (0, 1)]
    trainer = transformers.Trainer(model, transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    items = trainer._get_num_items_in_batch(micro, torch.device("cpu"))
    for batch in micro:
        batch["num_items_in_batch"] = 2 if items is None else items
        with_it = model(**batch).loss
        constraint = last_balance(model).constraint
        del batch["task_types"]
        torch.testing.assert_close(with_it, model(**batch).loss + 2.0 * constraint / 2)
        assert constraint > 0


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_further_adapters_of_a_task_have_heads_of_their_own() -> None:
    model = get_peft_model(llama("ForSequenceClassification"), config("up_proj", task_type="SEQ_CLS"))
    model.add_adapter("other", config("up_proj", task_type="SEQ_CLS"))
    assert set(model.base_model.model.score.modules_to_save) == {"default", "other"}


def test_an_encoder_decoder_generates() -> None:
    torch.manual_seed(0)
    model = get_peft_model(t5(), config("wi", "wo", task_type="SEQ_2_SEQ_LM")).eval()
    ids = torch.arange(2, 12).reshape(2, 5)
    made = model.generate(input_ids=ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert made.shape == (2, 5)
    assert torch.equal(made, model.generate(input_ids=ids, max_new_tokens=4, min_new_tokens=4, use_cache=False))


def test_a_model_without_a_task_is_told_by_its_class(tmp_path: Path) -> None:
    model = get_peft_model(llama("ForCausalLM"), config("up_proj"))
    model.save_pretrained(tmp_path)
    read = LoraMoeConfig.from_pretrained(tmp_path)
    assert read.auto_mapping == {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }


# --- a language model at work -----------------------------------------------------------------------------------------


def test_generation_of_positional_arguments(adapted: Maker, ids: Tensor) -> None:
    model = adapted()
    settings = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), model.generate(input_ids=ids, **settings))


def test_a_cache_of_the_caller(adapted: Maker, ids: Tensor) -> None:
    model = adapted()
    start = model(ids[:, :6], use_cache=True)
    rest = model(ids[:, 6:], past_key_values=start.past_key_values)
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], 1), model(ids).logits)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_embeddings_in_place_of_ids(task_type: Any, adapted: Maker, ids: Tensor) -> None:
    model = adapted(task_type=task_type)
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(input_ids=ids).logits)


def test_inputs_that_require_a_gradient(tiny_llama: Maker, ids: Tensor) -> None:
    base = prepare_model_for_kbit_training(tiny_llama())
    assert not any(p.requires_grad for p in base.parameters())
    model = get_peft_model(base, config("up_proj"))
    assert trainable(model) == {name for name, _ in model.named_parameters() if "loramoe_" in name}
    model.enable_input_require_grads()
    assert model.get_input_embeddings()(ids).requires_grad


def test_checkpointing_of_peft_gives_the_same_gradients(adapted: Maker, ids: Tensor) -> None:
    model = adapted(lora_dropout=0.0, blc_weight=0.0).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.prepare_model_for_gradient_checkpointing(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    torch.testing.assert_close(gradients(), plain)
    assert plain.keys() == trainable(model)


@torch.no_grad()
def test_threads_share_a_model(adapted: Maker, ids: Tensor) -> None:
    model = adapted()
    wanted = model(ids).logits
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: model(ids).logits, range(8)))
    assert all(torch.equal(logits, wanted) for logits in made)


# --- a model that was compiled before it was adapted ------------------------------------------------------------------


@pytest.mark.parametrize("compiled_source", [False, True])
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_an_adapter_comes_into_a_compiled_model(compiled_source: bool) -> None:
    source: Any = seeded(Mlp)
    if compiled_source:
        source = torch.compile(source, backend="eager")
    source = inject_adapter_in_model(config("lin0"), source)
    weights = get_peft_model_state_dict(source)
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}
    model = inject_adapter_in_model(config("lin0"), torch.compile(seeded(Mlp), backend="eager"))
    given = {f"_orig_mod.{name}": tensor for name, tensor in plain.items()}
    assert set(get_peft_model_state_dict(model)) == set(given)
    assert not set_peft_model_state_dict(model, given).unexpected_keys
    assert torch.equal(model(rows()), source(rows()))


# --- the base model, on which all is put ------------------------------------------------------------------------------


def test_unloading_gives_back_what_was_there() -> None:
    base = seeded(Mlp)
    wanted, names = base(rows()), list(base.state_dict())
    model = get_peft_model(base, config("lin0"))
    assert not torch.allclose(model(rows()), wanted)
    back = model.unload()
    assert back is base
    assert not layers_of(back)
    assert list(back.state_dict()) == names
    assert torch.equal(back(rows()), wanted)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"safe_merge": True},
        {"progressbar": True},
        {"adapter_names": ["default"]},
    ],
    ids=str,
)
def test_merging_is_refused_however_it_is_asked(how: dict[str, Any]) -> None:
    model = get_peft_model(seeded(Mlp), config("lin0"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NotImplementedError, match="a LoRAMoE adapter cannot be merged"):
        model.merge_and_unload(**how)
    with pytest.raises(NotImplementedError, match="a LoRAMoE adapter cannot be merged"):
        model.merge_adapter(adapter_names=how.get("adapter_names"), safe_merge=bool(how.get("safe_merge")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not layer.merged for layer in layers_of(model).values())


def test_a_peft_model_can_be_made_by_hand(tiny_llama: Maker, ids: Tensor) -> None:
    model = PeftModel(tiny_llama(), config("up_proj"), adapter_name="mine")
    assert model.active_adapter == "mine"
    assert model(ids).logits.shape == (2, 10, 64)
