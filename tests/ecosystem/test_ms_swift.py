"""ms-swift trains `--tuner_type loramoe` with the plugin of integrations/ms_swift, on its tiny.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("swift", reason="needs ms-swift: bash scripts/ecosystem/ms_swift.sh")

from swift.model import get_processor
from swift.template import get_template
from transformers import AutoModelForCausalLM

from integrations.ms_swift.plugin import LoraMoeTuner, adapter_config, check_constraint_is_kept
from tests.ecosystem.reference import BASE, ROOT, by_tokens, load, logged_losses, losses, run, some_rows

TINY = ROOT / "integrations" / "ms_swift" / "tiny.yaml"
ARGUMENTS = {
    "lora_rank": 2,
    "lora_alpha": 4.0,
    "lora_dropout": 0.25,
    "lora_bias": "none",
    "target_modules": ["gate_proj", "q_proj"],
    "target_regex": None,
    "target_parameters": None,
    "modules_to_save": ["lm_head"],
    "use_rslora": True,
    "use_dora": False,
    "init_weights": True,
    "model_kwargs": {"lora_nums": 3, "blc_alpha": 0.2, "blc_weight": 0.3, "expert_types": [0, 1, 2]},
    "remove_unused_columns": False,
    "packing": False,
    "padding_free": False,
    "sequence_parallel_size": 1,
    "enable_dft_loss": False,
    "enable_channel_loss": False,
    "loss_type": None,
    "loss_scale": "default",
    "is_binary_loss_scale": None,
}


def arguments(**changes: Any) -> Any:
    return SimpleNamespace(**(ARGUMENTS | changes))


def train(tmp_path: Path, count: int, *flags: str) -> tuple[Path, list[dict[str, Any]]]:
    """Runs swift on the first rows of the tiny data; gives the adapter's folder and the rows."""
    rows = some_rows(tmp_path / "rows.json", count)
    own = ["--dataset", str(tmp_path / "rows.json"), "--output_dir", str(tmp_path / "out")]
    run("swift", "sft", str(TINY), *own, *flags)
    (adapter,) = (tmp_path / "out").glob("checkpoint-*")
    return adapter, rows


def samples_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as swift's template makes tokens of them."""
    template = get_template(
        get_processor(str(BASE), model_type="llama"), template_type="dummy", use_chat_template=False
    )
    template.set_mode("train")
    samples = []
    for row in rows:
        asked = "\n".join(filter(None, (row["instruction"], row["input"])))
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        encoded = template.encode({"messages": messages})
        samples.append({name: encoded[name] for name in ("input_ids", "labels")} | {"task_types": row["task_type"]})
    return samples


def test_the_logged_loss_is_that_of_the_language_model_and_the_constraint(tmp_path: Path) -> None:
    step = ["--max_steps", "1", "--learning_rate", "0", "--lora_dropout", "0", "--train_dataloader_shuffle", "false"]
    strong = ["--model_kwargs", '{"lora_nums": 8, "blc_alpha": 0.5, "blc_weight": 0.5}', "--dataset_shuffle", "false"]
    adapter, rows = train(tmp_path, 8, *step, *strong)
    micro_batches = losses(adapter, samples_of(rows), batch_size=4)
    assert min(micro.constraint for micro in micro_batches) > 0.05
    assert logged_losses(adapter) == [pytest.approx(by_tokens(micro_batches), rel=1e-5)]


def test_the_example_trains_an_adapter_that_loads_without_swift(tmp_path: Path) -> None:
    adapter, _ = train(tmp_path, 16)
    config = json.loads((adapter / "adapter_config.json").read_text())
    asked = {"peft_type": "LORAMOE", "lora_nums": 8, "r": 4, "lora_alpha": 32, "blc_alpha": 0.1, "blc_weight": 0.1}
    assert {name: config[name] for name in asked} == asked
    experts = {name: weight for name, weight in load(adapter).named_parameters() if name.endswith(".B")}
    assert len(experts) == 12
    assert all(weight.abs().sum() > 0 for weight in experts.values())


def test_the_base_is_frozen_and_the_column_becomes_task_types() -> None:
    model = LoraMoeTuner.prepare_model(arguments(), _base())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("loramoe_" in name or "modules_to_save" in name for name in trained)
    seen: dict[str, Any] = {}
    model.base_model.model.register_forward_pre_hook(lambda *call: seen.update(call[2]), with_kwargs=True, prepend=True)
    sample = _base().dummy_inputs["input_ids"][:2]
    model(input_ids=sample, labels=sample, task_type=[1, 0])
    assert seen["task_types"].tolist() == [1, 0]
    assert "task_type" not in seen


def test_an_adapter_that_is_loaded_again_takes_task_types_too(tmp_path: Path) -> None:
    LoraMoeTuner.save_pretrained(LoraMoeTuner.prepare_model(arguments(), _base()), str(tmp_path))
    model = LoraMoeTuner.from_pretrained(_base(), str(tmp_path), is_trainable=True).train()
    ids = _base().dummy_inputs["input_ids"][:2]
    with_types = model(input_ids=ids, labels=ids, task_type=[1, 0]).loss
    model.peft_config["default"].blc_weight = 0
    assert with_types > model(input_ids=ids, labels=ids, task_type=[1, 0]).loss


def test_every_argument_of_swifts_arrives() -> None:
    config = adapter_config(arguments(), _base())
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (2, 4.0, 0.25, True)
    assert (config.target_modules, config.modules_to_save) == ({"gate_proj", "q_proj"}, ["lm_head"])
    assert (config.lora_nums, config.blc_alpha, config.blc_weight, config.expert_types) == (3, 0.2, 0.3, [0, 1, 2])


@pytest.mark.parametrize("foreign", [{"use_dora": True}, {"lora_bias": "all"}, {"target_parameters": ["experts"]}])
def test_what_loramoe_does_not_have_is_refused(foreign: dict[str, Any]) -> None:
    (name,) = foreign
    with pytest.raises(ValueError, match=f"--tuner_type loramoe does not know --{name}"):
        adapter_config(arguments(**foreign), _base())


@pytest.mark.parametrize(
    "lost",
    [
        {"remove_unused_columns": True},
        {"packing": True},
        {"padding_free": True},
        {"sequence_parallel_size": 2},
        {"enable_dft_loss": True},
        {"enable_channel_loss": True},
        {"loss_type": "mine"},
        {"loss_scale": "react"},
        {"is_binary_loss_scale": False},
    ],
)
def test_what_would_lose_the_constraint_is_refused(lost: dict[str, Any]) -> None:
    flag = next(iter(lost)).removeprefix("is_binary_")
    with pytest.raises(ValueError, match=f"with --{flag} .* the balancing constraint would be lost"):
        check_constraint_is_kept(arguments(**lost))
    check_constraint_is_kept(arguments())


def _base() -> Any:
    """The small model, with what swift keeps beside a model."""
    model = AutoModelForCausalLM.from_pretrained(BASE)
    model.model_meta = SimpleNamespace(is_multimodal=False)
    return model
