"""Base model, tokenizer and adapter as the flags ask for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from loramoe import LoraMoeConfig
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.model import adapter_config, add_adapter, empty_base, load_base, load_tokenizer
from loramoe.training.model_arguments import ModelArguments
from loramoe.training.parser import parse
from loramoe.utils import UsageError


def training(*flags: str) -> Any:
    return parse(["--base_model", "base", "--dataset_dir", "d", "--output_dir", "o", "--use_cpu", "true", *flags])[2]


def test_every_flag_reaches_the_configuration():
    config = adapter_config(
        ModelArguments(
            "base",
            trainable="up_proj,down_proj",
            lora_rank=2,
            lora_alpha=7,
            lora_dropout=0.3,
            lora_nums=3,
            blc_alpha=0.4,
            blc_weight=0.5,
            expert_types="2,1,0",
            blc_target="match",
            modules_to_save="lm_head",
        )
    )
    assert (config.r, config.lora_alpha, config.lora_dropout, config.lora_nums) == (2, 7, 0.3, 3)
    assert (config.blc_alpha, config.blc_weight, config.blc_target) == (0.4, 0.5, "match")
    assert config.types_of_experts == (2, 1, 0)
    assert (config.target_modules, config.modules_to_save) == ({"up_proj", "down_proj"}, ["lm_head"])


def test_a_new_adapter_is_on_the_mlp_and_trainable(tiny_task):
    arguments = ModelArguments(str(tiny_task.base), lora_nums=2)
    base = load_base(arguments, training())
    model = add_adapter(base, arguments, adapter_config(arguments))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 3 * 3
    assert all(".mlp." in name and f".{ADAPTER}." in name for name in trainable)


def test_the_adapter_to_continue_from_keeps_its_own_configuration(tiny_task, tmp_path, caplog):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    get_peft_model(base, LoraMoeConfig(lora_nums=3, r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    config = adapter_config(ModelArguments(str(tiny_task.base), adapter=str(tmp_path)))
    assert (config.lora_nums, config.r) == (3, 2)
    assert (
        "the adapter to continue from replaces the flags: r=2, lora_nums=3, types_of_experts=(1, 0, 0)" in caplog.text
    )


def test_flags_that_the_adapter_replaces_are_told(tiny_task, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    saved = LoraMoeConfig(target_modules=["up_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(base, saved).save_pretrained(tmp_path)
    same = {"trainable": "up_proj", "modules_to_save": "lm_head"}
    adapter_config(ModelArguments("base", adapter=str(tmp_path), **same))
    adapter_config(ModelArguments("base", adapter=str(tmp_path)))
    assert "replaces the flags" not in caplog.text
    other = {"trainable": "up_proj,q_proj", "modules_to_save": "embed_tokens", "expert_types": "0,0,0,0,1,1,1,1"}
    adapter_config(ModelArguments("base", adapter=str(tmp_path), **other))
    told = "types_of_experts=(1, 1, 1, 1, 0, 0, 0, 0), target_modules=['up_proj'], modules_to_save=['lm_head']"
    assert f"replaces the flags: {told}" in caplog.text


def test_what_is_not_there_is_told(tmp_path: Path):
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"adapter=.*nowhere holds no adapter"):
        adapter_config(ModelArguments("base", adapter=nowhere))
    with pytest.raises(UsageError, match=r"the tokenizer .*nowhere cannot be loaded"):
        load_tokenizer(ModelArguments(nowhere))
    with pytest.raises(UsageError, match=r"base_model=.*nowhere cannot be loaded"):
        load_base(ModelArguments(nowhere), training())


def test_linears_that_the_model_does_not_have_are_told(tiny_task):
    arguments = ModelArguments(str(tiny_task.base), trainable="no_such_proj")
    base = load_base(arguments, training())
    with pytest.raises(UsageError, match="no_such_proj"):
        add_adapter(base, arguments, adapter_config(arguments))


def test_an_adapter_of_another_kind_is_refused(tiny_task, tmp_path: Path):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    get_peft_model(base, LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"adapter must hold a LoRAMoE adapter; .* holds one of type"):
        adapter_config(ModelArguments(str(tiny_task.base), adapter=str(tmp_path)))


def test_the_dtype_of_the_base(tiny_task):
    arguments = ModelArguments(str(tiny_task.base), dtype="bfloat16", load_in_kbits=16)
    assert load_base(arguments, training()).dtype == torch.bfloat16


def test_quantisation_as_the_flags_say(tiny_task, tmp_path: Path):
    options = {"double_quant": False, "quant_type": "fp4", "dtype": "bfloat16"}
    arguments = ModelArguments(str(tiny_task.base), **options)
    arguments.load_in_kbits = 4  # the package need not be here
    four = arguments.model_options(torch.float16)["quantization_config"]
    assert (four.load_in_4bit, four.bnb_4bit_use_double_quant, four.bnb_4bit_quant_type) == (True, False, "fp4")
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    arguments.load_in_kbits = 8
    assert arguments.model_options()["quantization_config"].load_in_8bit


def test_products_in_4_bits_follow_the_training_or_the_saved_dtype(tiny_task, tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(tiny_task.base, dtype=torch.float16).save_pretrained(tmp_path)
    found = []
    for base, of_training in ((tmp_path, None), (tiny_task.base, None), (tmp_path, torch.bfloat16)):
        arguments = ModelArguments(str(base))
        arguments.load_in_kbits = 4
        found.append(arguments.model_options(of_training)["quantization_config"].bnb_4bit_compute_dtype)
    assert found == [torch.float16, torch.float32, torch.bfloat16]


def test_options_of_loading_reach_transformers(tiny_task, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def load(name: str, **options: Any) -> torch.nn.Module:
        seen.update(options)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    arguments = ModelArguments("base", revision="v1", trust_remote_code=True, attn_implementation="eager")
    args = training()
    load_base(arguments, args)
    assert (seen["revision"], seen["trust_remote_code"], seen["attn_implementation"]) == ("v1", True, "eager")
    assert "device_map" not in seen
    monkeypatch.setattr(type(args), "device", torch.device("cuda", 1))
    load_base(arguments, args)
    assert seen["device_map"] == {"": torch.device("cuda", 1)}


def test_a_base_without_weights_has_the_modules_of_one_with(tiny_task):
    real = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    empty = empty_base(real.config)
    assert [name for name, _ in empty.named_modules()] == [name for name, _ in real.named_modules()]
    assert all(weight.is_meta for weight in empty.parameters())
    real.config.tie_word_embeddings = True
    assert "lm_head.weight" not in dict(empty_base(real.config).named_parameters())


def test_a_chat_template_whose_name_is_a_path_elsewhere(tiny_task, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_task.base, tmp_path / "base"))
    file = folder / "tokenizer_config.json"
    for name in ("default", "../../elsewhere"):
        templates = [{"name": "default", "template": "x"}, {"name": name, "template": "x"}]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
        if name == "default":
            load_tokenizer(ModelArguments(str(folder)))
    with pytest.raises(UsageError, match=r"chat template named '../../elsewhere', which would be saved outside"):
        load_tokenizer(ModelArguments(str(folder)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "'list' object is not a mapping"),
        ('{"peft_type": "NO"}', "'NO'"),
        ('{"peft_type": "LORAMOE", "r": "4"}', "r must be a whole number of at least 1; got '4'"),
    ],
)
def test_an_adapter_whose_configuration_is_broken(config: str, message: str, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(UsageError, match=f"adapter=.* holds no adapter .*{message}") as caught:
        adapter_config(ModelArguments("base", adapter=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base_model(tiny_task, tmp_path: Path):
    other = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=48, num_hidden_layers=2, vocab_size=64))
    get_peft_model(other, LoraMoeConfig(lora_nums=3, r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    arguments = ModelArguments(str(tiny_task.base), adapter=str(tmp_path))
    base = load_base(arguments, training())
    with pytest.raises(
        UsageError, match=r"adapter=.* cannot be loaded: .*has the shape \[64, 6\] in the adapter, and \[32, 6\]"
    ):
        add_adapter(base, arguments, adapter_config(arguments))
