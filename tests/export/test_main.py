"""The command and `export_lora`: from an adapter folder and data to a folder that other tools load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, LoraMoeConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import loramoe
from loramoe.data import PromptFormat, save_prompt_format
from loramoe.export.__main__ import main
from loramoe.export.lora import as_plain_lora, plain_lora

LORA = {"adapter_config.json", "adapter_model.safetensors", "README.md", "export_report.json", "loramoe_prompt.json"}
LORA |= {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def adapter(tiny_task, perturb, tmp_path: Path, own_dataset_cache) -> Path:
    """A LoRAMoE adapter on the base model of `tiny_task`."""
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    config = LoraMoeConfig(lora_nums=4, r=2, base_model_name_or_path=str(tiny_task.base))
    perturb(get_peft_model(base, config)).save_pretrained(tmp_path / "adapter")
    save_prompt_format(tmp_path / "adapter", PromptFormat("release", 32))
    return tmp_path / "adapter"


@pytest.fixture
def export(adapter, tiny_task, tmp_path):
    """Runs the command with flags; gives its exit code and the folder."""

    def run(*flags: object, calibration: object = tiny_task.train_dir, out: str = "out") -> tuple[int, Path]:
        own = ["--adapter", adapter, "--output_dir", tmp_path / out, "--calibration", calibration]
        return main([str(word) for word in (*own, *flags)]), tmp_path / out

    return run


@torch.no_grad()
@pytest.mark.parametrize("merged", [False, True])
def test_from_folder_to_folder(adapter, export, tiny_task, ids, merged, capsys):
    flags = ["--rank", 3, "--test", tiny_task.test_file, "--calibration_rows", 20, "--batch_size", 6]
    code, out = export(*flags, *(["--format", "merged"] if merged else []))
    assert code == 0
    report = json.loads((out / "export_report.json").read_text())
    assert (report["format"], report["source"], report["held_out"]) == ("merged" if merged else "lora", "adapter", True)
    assert (report["experts"], report["rank"], report["groups"]["answers"]["samples"]) == (4, 3, 12)
    assert set(report["files"]) == {entry.name for entry in out.iterdir()}
    assert (out / "loramoe_prompt.json").read_bytes() == (adapter / "loramoe_prompt.json").read_bytes()
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (out, tiny_task.base)]
    assert len({str(tokenizer("w1 w2").input_ids) for tokenizer in tokenizers}) == 1
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    model = PeftModel.from_pretrained(base, adapter).eval()
    gates = {key: torch.tensor(values, dtype=torch.float64) for key, values in report["mean_gates"].items()}
    with as_plain_lora(model, plain_lora(model, gates, 3)):
        expected = model(ids).logits
    if merged:
        assert type(found := AutoModelForCausalLM.from_pretrained(out)).__name__ == "LlamaForCausalLM"
        assert not (out / "adapter_config.json").exists()
    else:
        found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_task.base), out)
        assert type(found.peft_config["default"]) is LoraConfig
        assert {entry.name for entry in out.iterdir()} == LORA
    torch.testing.assert_close(found.eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert f"perplexity={report['groups']['answers']['lora']['perplexity']:.4g}" in capsys.readouterr().out


def test_an_adapter_on_the_hub(adapter, export, tmp_path, monkeypatch):
    """In each format, its prompt format is that of the downloaded folder."""
    shutil.move(adapter, tmp_path / "downloaded")
    file = tmp_path / "downloaded" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"blc_target": "paper", "blc_importance": "sum"}))
    monkeypatch.setattr("loramoe.loading.snapshot_download", lambda *_, **__: str(tmp_path / "downloaded"))
    for kind in ("lora", "hf", "original"):
        own = ["--adapter", "someone/adapter", "--output_dir", tmp_path / kind, "--format", kind]
        data = ["--calibration", tmp_path / "samples.json"] if kind == "lora" else []
        (tmp_path / "samples.json").write_text('[{"instruction": "w1", "output": "w9", "task_type": 0}]')
        assert main([str(word) for word in (*own, *data)]) == 0
        found = (tmp_path / kind / "loramoe_prompt.json").read_bytes()
        assert found == (tmp_path / "downloaded" / "loramoe_prompt.json").read_bytes()
    assert json.loads((tmp_path / "lora" / "export_report.json").read_text())["source"] == "someone/adapter"
    assert any("lora_route" in name for name in torch.load(tmp_path / "original" / "adapter_model.bin"))


def test_the_card(adapter, tiny_task, tmp_path, monkeypatch):
    """It names the base model on the hub, and no path of this machine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # else PEFT looks there for the vocabulary
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_task.base), adapter)
    batches = [{"input_ids": torch.arange(3, 13)[None], "labels": torch.arange(3, 13)[None]}]
    for base, named in ((str(tiny_task.base), None), ("someone/base", "someone/base")):
        model.peft_config["default"].base_model_name_or_path = base
        out = tmp_path / (named or "local")
        report = loramoe.export_lora(model, out, batches, source=str(adapter))
        card = ModelCard.load(out / "README.md")
        assert card.data.base_model == named
        assert (card.data.library_name, card.data.get("base_model_relation")) == ("peft", named and "adapter")
        share = report["groups"]["answers"]["lora"]["kl"] / report["groups"]["answers"]["base"]["kl"]
        for text in ("approximates adapter", f"{share:.1%}", "rank 8", "flatters"):
            assert text in card.text
        assert card.text.count("| `model.layers.") == 6
        public = (out / "README.md").read_text() + (out / "export_report.json").read_text()
        assert str(tmp_path) not in public.replace(str(tiny_task.base), "")


def test_samples_whose_answer_may_be_cut_are_left_out(export, tmp_path):
    """Of 3 prompt tokens, a word and its end, 5 tokens, and one of 10."""
    samples = [{"instruction": "w1", "output": f"w9{' w8' * more}", "task_type": 0} for more in (0, 5)]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    for most, used in ((6, 1), (30, 2)):
        code, out = export("--max_seq_length", most, calibration=tmp_path / "samples.json", out=f"out{most}")
        assert code == 0
        assert json.loads((out / "export_report.json").read_text())["groups"]["answers"]["samples"] == used


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--calibration", "nowhere.json"], "nowhere.json"),
        (["--test", "nowhere.json"], "nowhere.json"),
        (["--template", "chat"], "chat_template"),
        (["--load_in_kbits", "3"], "load_in_kbits=3"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--output_dir", "{adapter}", "--overwrite"], "output_dir"),
    ],
)
def test_errors_come_before_the_base_model_is_loaded(export, adapter, capsys, monkeypatch, flags, named):
    monkeypatch.setattr("loramoe.loading.load_model", lambda *_: pytest.fail("the base model was loaded"))
    code, out = export(*(flag.format(adapter=adapter) for flag in flags))
    assert code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("loramoe export: ")
    assert named in error
    assert not out.exists()
    assert (adapter / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--calibration", "x", "--rank", "0"], "--rank"),
        (["--format", "hf", "--rank", "2"], "--rank"),
        (["--calibration", "x", "--format", "merged", "--load_in_kbits", "4"], "--load_in_kbits"),
        ([], "--calibration"),
    ],
)
def test_flags_that_do_not_belong_together(capsys, flags, named):
    with pytest.raises(SystemExit):
        main(["--adapter", "a", "--output_dir", "o", *flags])
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_an_earlier_result_is_replaced_only_with_the_flag(export, capsys):
    assert export()[0] == 0
    assert export("--rank", 2)[0] == 1
    assert "--overwrite" in capsys.readouterr().err
    code, out = export("--rank", 2, "--overwrite")
    assert code == 0
    assert json.loads((out / "export_report.json").read_text())["rank"] == 2
