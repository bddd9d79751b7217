"""The command: from an adapter's folder and files of rows to the folder of a plain LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig, LoraMoeConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from loramoe.data import PromptFormat, save_prompt_format
from loramoe.export.__main__ import main


@pytest.fixture
def adapter(tiny_task, perturb, tmp_path: Path) -> Path:
    """A LoRAMoE adapter on the base model of `tiny_task`."""
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    perturb(get_peft_model(base, LoraMoeConfig(lora_nums=4, r=2))).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_from_folder_to_folder(adapter, tiny_task, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--calibration", tiny_task.train_dir, "--calibration_rows", 20, "--batch_size", 6]
    flags += ["--test", tiny_task.test_file, "--recall_file", tiny_task.recall_file, "--max_seq_length", 32]
    assert main([str(adapter), str(out), *map(str, flags), "--model", str(tiny_task.base)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"wrote {out}, an approximation; read {out}/README.md before you use it\n")
    assert "samples read: 48" in printed
    report = json.loads((out / "export_report.json").read_text())
    assert (report["source"], report["base_model"]) == (adapter.name, tiny_task.base.name)
    assert report["groups"]["answers"]["rows"] == 12
    assert report["recall"].keys() == {"base", "mixture", "export"}
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 128)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_task.base), out)
    assert isinstance(model.peft_config["default"], LoraConfig)
    assert (out / "tokenizer.json").is_file()
    assert main([str(adapter), str(out), "--calibration", str(tiny_task.train_dir)]) == 1
    assert "holds an earlier export" in capsys.readouterr().err


def test_calibration_rows_are_spread_over_the_file(adapter, tiny_task, tmp_path):
    """A file whose second half holds other rows: half of 2 rows must be from it."""
    rows = [{"instruction": w, "output": "w9", "task_type": 0} for w in ["w1"] * 50 + ["w1 w2 w3 w4 w5"] * 50]
    (tmp_path / "sorted.json").write_text(json.dumps(rows))
    flags = ["--calibration", str(tmp_path / "sorted.json"), "--model", str(tiny_task.base)]
    lengths = {}
    for most in (2, 100):
        out = tmp_path / f"out{most}"
        assert main([str(adapter), str(out), *flags, "--calibration_rows", str(most)]) == 0
        lengths[most] = json.loads((out / "export_report.json").read_text())["calibration_tokens"] / most
    assert lengths[2] == lengths[100]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calibration", "nowhere.json"], "data path 'nowhere.json' does not exist"),
        (
            ["--calibration", "{train}", "--batch_size", "0"],
            "must be at least 1; got batch_size=0. Raise it.",
        ),
        (["--calibration", "{train}", "--calibration_rows", "0"], "calibration_rows must be at least 1"),
        (["--calibration", "{train}", "--recall_file", "nowhere.json"], "nowhere.json"),
        (["--calibration", "{train}", "--template", "chat"], "needs tokenizer.chat_template"),
        (["--calibration", "{train}", "--max_seq_length", "1"], "max_seq_length must be at least 2"),
        (["--calibration", "{train}", "--load_in_kbits", "3"], "load_in_kbits must be 4, 8 or 16; got load_in_kbits=3"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line(adapter, tiny_task, tmp_path, capsys, flags, message):
    flags = [flag.format(train=tiny_task.train_dir) for flag in flags]
    assert main([str(adapter), str(tmp_path / "out"), "--model", str(tiny_task.base), *flags]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("loramoe export: ")
    assert message in told
    assert not (tmp_path / "out").exists()


def test_the_layout_is_that_of_the_training(adapter, tiny_task, tmp_path, capsys):
    save_prompt_format(adapter, PromptFormat("release", 1))
    flags = [str(tmp_path / "out"), "--calibration", str(tiny_task.train_dir)]
    assert main([str(adapter), *flags, "--model", str(tiny_task.base)]) == 1
    assert "max_seq_length=1" in capsys.readouterr().err


def test_an_answer_that_may_have_been_cut_is_not_measured_as_an_answer(adapter, tiny_task, tmp_path, capsys):
    """Of answers of 1 and 6 words and the token that ends them, 3 tokens after a prompt of 3 hold the first alone."""
    rows = [{"instruction": "w1", "output": f"w9{' w8' * more}", "task_type": 0} for more in (0, 5)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ["--calibration", str(tmp_path / "rows.json"), "--model", str(tiny_task.base), "--max_seq_length"]
    answered = {}
    for most in (6, 100):
        assert main([str(adapter), str(tmp_path / f"out{most}"), *flags, str(most)]) == 0
        groups = json.loads((tmp_path / f"out{most}" / "export_report.json").read_text())["groups"]
        answered[most] = groups["answers"]["rows"], groups["all tokens"]["rows"]
    assert answered == {6: (1, 2), 100: (2, 2)}
    assert main([str(adapter), str(tmp_path / "none"), *flags, "4"]) == 1
    assert "hold no answers: no label differs from -100. Give rows with some, or raise" in capsys.readouterr().err


def test_the_dtype_of_the_base_model(adapter, tiny_task, tmp_path):
    flags = ["--calibration", str(tiny_task.train_dir), "--model", str(tiny_task.base)]
    perplexity = {}
    for dtype in ("auto", "float32", "bfloat16"):
        assert main([str(adapter), str(tmp_path / dtype), *flags, "--torch_dtype", dtype]) == 0
        groups = json.loads((tmp_path / dtype / "export_report.json").read_text())["groups"]
        perplexity[dtype] = groups["answers"]["answers"]["base"]["perplexity"]
    assert perplexity["auto"] == perplexity["float32"] != perplexity["bfloat16"]


def test_no_adapter(tiny_task, tmp_path, capsys):
    assert main([str(tmp_path / "none"), str(tmp_path / "out"), "--calibration", str(tiny_task.train_dir)]) == 1
    assert "no adapter at" in capsys.readouterr().err


def test_a_plain_lora_needs_no_export(tiny_task, tmp_path, capsys):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    get_peft_model(base, LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path / "plain")
    assert main([str(tmp_path / "plain"), str(tmp_path / "out"), "--calibration", str(tiny_task.train_dir)]) == 1
    assert "only LoRAMoE needs this export" in capsys.readouterr().err
