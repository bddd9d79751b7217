"""ms-swift trains `--tuner_type loramoe` with our plug-in: the constraint is in its loss, the adapter loads alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("swift", reason="needs ms-swift: bash scripts/ecosystem/ms_swift.sh")

from swift.model import get_processor
from swift.template import get_template
from transformers import AutoModelForCausalLM

from loramoe.integrations.ms_swift import LoraMoeTuner, adapter_config, check_constraint
from tests.ecosystem.reference import BASE, assert_trained, by_tokens, first_samples, logged_losses, losses, run

FLAGS = {"lora_rank": 2, "lora_alpha": 4.0, "lora_dropout": 0.25, "lora_bias": "none", "target_regex": None}
FLAGS |= {"target_modules": ["gate_proj", "q_proj"], "target_parameters": None, "modules_to_save": ["lm_head"]}
FLAGS |= {"use_rslora": True, "use_dora": False, "init_weights": True, "remove_unused_columns": False}
FLAGS |= {"packing": False, "padding_free": False, "sequence_parallel_size": 1, "enable_dft_loss": False}
FLAGS |= {"enable_channel_loss": False, "loss_type": None, "loss_scale": "default", "is_binary_loss_scale": None}
FLAGS["model_kwargs"] = {"lora_nums": 3, "blc_alpha": 0.2, "blc_weight": 0.3, "expert_types": [0, 1, 2]}


def flags(**changes: Any) -> Any:
    return SimpleNamespace(**(FLAGS | changes))


def base() -> Any:
    """The small model, with what swift keeps with a model."""
    model = AutoModelForCausalLM.from_pretrained(BASE)
    model.model_meta = SimpleNamespace(is_multimodal=False)
    return model


def train(tmp_path: Path, count: int, *words: str) -> tuple[Path, list[dict[str, Any]]]:
    """Runs swift on the first samples of the tiny data; gives the adapter and the samples."""
    samples = first_samples(tmp_path / "samples.json", count)
    own = ["--dataset", str(tmp_path / "samples.json"), "--output_dir", str(tmp_path / "out")]
    run("swift", "sft", "examples/integrations/ms_swift.yaml", *own, *words)
    (adapter,) = (tmp_path / "out").glob("checkpoint-*")
    return adapter, samples


def tokenised(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples as swift's template encodes them."""
    processor = get_processor(str(BASE), model_type="llama")
    template = get_template(processor, template_type="dummy", use_chat_template=False)
    template.set_mode("train")
    found = []
    for sample in samples:
        question = "\n".join(filter(None, (sample["instruction"], sample["input"])))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": sample["output"]}]
        encoded = template.encode({"messages": turns})
        found.append({name: encoded[name] for name in ("input_ids", "labels")} | {"task_types": sample["task_type"]})
    return found


def test_the_constraint_is_in_the_loss(tmp_path: Path) -> None:
    step = ["--max_steps", "1", "--learning_rate", "0", "--lora_dropout", "0", "--train_dataloader_shuffle", "false"]
    strong = ["--model_kwargs", '{"lora_nums": 8, "blc_alpha": 0.5, "blc_weight": 0.5}', "--dataset_shuffle", "false"]
    adapter, samples = train(tmp_path, 8, *step, *strong)
    expected = by_tokens(losses(adapter, tokenised(samples), batch_size=4))
    assert logged_losses(adapter) == [pytest.approx(expected, rel=1e-5)]


def test_the_example_trains_an_adapter_that_loads_without_swift(tmp_path: Path) -> None:
    assert_trained(train(tmp_path, 16)[0])


def test_an_adapter_that_is_loaded_again_takes_task_types(tmp_path: Path) -> None:
    LoraMoeTuner.save_pretrained(LoraMoeTuner.prepare_model(flags(), base()), str(tmp_path))
    model = LoraMoeTuner.from_pretrained(base(), str(tmp_path), is_trainable=True).train()
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (2, 4.0, 0.25, True)
    assert (config.target_modules, config.modules_to_save) == ({"gate_proj", "q_proj"}, ["lm_head"])
    assert FLAGS["model_kwargs"].items() <= vars(config).items()
    ids = base().dummy_inputs["input_ids"][:2]
    with_constraint = model(input_ids=ids, labels=ids, task_type=[1, 0]).loss
    config.blc_weight = 0
    assert with_constraint > model(input_ids=ids, labels=ids, task_type=[1, 0]).loss


@pytest.mark.parametrize(
    ("foreign", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_weights": "pissa"}, "pissa"),
        ({"model_kwargs": {"blc_wieght": 0.1}}, "blc_wieght"),
    ],
)
def test_what_loramoe_does_not_have_is_refused(foreign: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        adapter_config(flags(**foreign), base())


@pytest.mark.parametrize("lost", [{"remove_unused_columns": True}, {"packing": True}, {"loss_scale": "react"}])
def test_what_would_leave_the_constraint_out_is_refused(lost: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(lost))):
        check_constraint(flags(**lost))
    check_constraint(flags())
