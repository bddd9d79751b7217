"""The exported folder: an ordinary Hugging Face model that computes what the adapter does, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from loramoe.cli import main
from loramoe.data import PromptFormat, save_prompt_format
from loramoe.serving import FAMILIES
from loramoe.serving.export import export_model
from loramoe.serving.model import WEIGHTS
from loramoe.utils import USER_ERRORS
from tests.helpers import edit


def greedy(model, ids):
    return model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)


FORMS = [(family, "float32", True) for family in FAMILIES]


@torch.no_grad()
@pytest.mark.parametrize(("family", "dtype", "link_base"), [*FORMS, ("gemma3_text", "bfloat16", False)])
def test_it_computes_what_the_adapter_computes(save_pair, ids, tmp_path, family, dtype, link_base):
    adapter, out = save_pair(family), tmp_path / "out"
    export_model(str(adapter), out, dtype=dtype, link_base=link_base)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=getattr(torch, dtype))
    expected = PeftModel.from_pretrained(base, adapter).eval()
    found = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert type(found).__name__ == f"LoraMoe{FAMILIES[family][2]}"
    assert str(found.dtype) == f"torch.{dtype}"
    assert {w.dtype for name, w in found.named_parameters() if name.endswith(WEIGHTS)} == {torch.float32}
    assert torch.equal(found(ids).logits, expected(ids).logits)
    assert torch.equal(greedy(found, ids), greedy(expected, ids))
    with expected.disable_adapter():
        assert not torch.equal(found(ids).logits, expected(ids).logits)
    decoder = AutoModel.from_pretrained(out, dtype="auto")
    assert torch.equal(decoder(ids).last_hidden_state, found.model(ids).last_hidden_state)
    found.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    assert torch.equal(again(ids).logits, found(ids).logits)


def test_the_folder(save_pair, tmp_path, capsys):
    adapter, out = save_pair(), tmp_path / "out"
    save_prompt_format(adapter, PromptFormat("release", 32))
    command = ["export", "--format", "hf", "--adapter", str(adapter), "--output_dir", str(out)]
    assert main(command) == 0
    assert str(out) in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("loramoe_llama", ["TransformersForCausalLM"])
    assert config["loramoe"]["lora_nums"] == 3
    assert config["loramoe"]["layers"]["layers.1.self_attn.q_proj"] == {"r": 3, "scaling": 32 / 3**0.5}
    assert str(tmp_path) not in "".join(file.read_text() for file in out.glob("*.json"))
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (out / "loramoe_prompt.json").read_bytes() == (adapter / "loramoe_prompt.json").read_bytes()
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (out, tmp_path / "base")]
    assert tokenizers[0]("w1").input_ids == tokenizers[1]("w1").input_ids
    assert main([*command, "--link_base"]) == 1
    assert "overwrite" in capsys.readouterr().err
    assert main([*command, "--link_base", "--overwrite"]) == 0
    assert not (out / "model.safetensors").exists()


def test_linked_files_are_those_of_the_base_model(save_pair, tmp_path, monkeypatch):
    adapter = save_pair(shard="20KB")
    shards = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 1
    for out in ("hard", "symbolic"):
        export_model(str(adapter), tmp_path / out, link_base=True)
        for shard in shards:
            assert (tmp_path / out / f"base-{shard.name}").samefile(shard)
        AutoModelForCausalLM.from_pretrained(tmp_path / out)

        def other_disk(*_: object) -> None:
            raise OSError

        monkeypatch.setattr("os.link", other_disk)


def test_a_layer_outside_the_decoder_is_refused(save_pair, tmp_path):
    adapter = save_pair(target_modules=["up_proj", "lm_head"], rank_pattern={}, alpha_pattern={})
    with pytest.raises(ValueError, match=r"lm_head \(Linear\)"):
        export_model(str(adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def plain_lora(adapter: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "base")
    get_peft_model(base, LoraConfig(target_modules=["up_proj"])).save_pretrained(adapter)


def edit_base(adapter: Path, **values: object) -> None:
    file = adapter.parent / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (plain_lora, "LORA"),
        (lambda adapter: edit(adapter, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda adapter: edit_base(adapter, model_type="mixtral"), "'mixtral'"),
        (lambda adapter: edit_base(adapter, quantization_config={"quant_method": "fp8"}), "quantised"),
        (lambda adapter: (adapter.parent / "base" / "model.safetensors").unlink(), "--link_base"),
    ],
)
def test_folders_that_are_refused_before_the_base_model_is_loaded(save_pair, tmp_path, monkeypatch, spoil, names):
    adapter = save_pair()
    spoil(adapter)
    monkeypatch.setattr("loramoe.serving.export.load_model", lambda *_: pytest.fail("the base model was loaded"))
    with pytest.raises((ValueError, *USER_ERRORS), match=names):
        export_model(str(adapter), tmp_path / "out", link_base=True)
