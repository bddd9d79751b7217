"""The folder of an export: whole or not at all, and an adapter for a PEFT that has never heard of LoRAMoE."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import loramoe
from loramoe.evaluation.recall import Probe
from loramoe.export import ExportError, as_plain_lora
from loramoe.export.original import CONFIG
from tests.helpers import layers_of, trainable

ROOT = Path(__file__).resolve().parents[2]
FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md", "export_linears.png", "export_report.json"}

PLAIN_PEFT = """if True:
    import sys, torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    assert "loramoe" not in sys.modules and "site-packages" in sys.modules["peft"].__file__
    base, export, ids, logits, merged = sys.argv[1:]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), export).eval()
    ids = torch.load(ids)
    with torch.no_grad():
        torch.save(model(ids).logits, logits)
        torch.save(model.merge_and_unload()(ids).logits, merged)
    assert "loramoe" not in sys.modules
"""


OLDEST = ROOT / ".venv-oldest" / "bin" / "python"
needs_oldest = pytest.mark.skipif(not OLDEST.exists(), reason="no environment of the oldest versions (.venv-oldest)")


@pytest.mark.parametrize(
    "python", [sys.executable, pytest.param(str(OLDEST), marks=needs_oldest)], ids=["this", "oldest"]
)
def test_plain_peft_loads_and_merges_it(adapted, batches, ids, tmp_path, python):
    model = adapted(modules_to_save=["lm_head"])
    report = loramoe.export_lora(model, tmp_path / "export", batches(), progress=False)
    gates = {name: torch.tensor(each.gates, dtype=torch.float64) for name, each in report.linears.items()}
    with torch.no_grad(), as_plain_lora(model, gates):
        expected = model(ids).logits
    model.unload().save_pretrained(tmp_path / "base")
    torch.save(ids, tmp_path / "ids")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    paths = [tmp_path / name for name in ("base", "export", "ids", "logits", "merged")]
    done = subprocess.run(
        [python, "-c", PLAIN_PEFT, *map(str, paths)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits"), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.load(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)


def test_what_is_in_the_folder(adapted, rows, batches, tmp_path):
    model = adapted()
    report = loramoe.export_lora(model, tmp_path / "a" / "b", batches(), batches(some=rows[:4]), progress=False)
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == FILES
    assert os.listdir(tmp_path / "a") == ["b"]
    told = json.loads((tmp_path / "a" / "b" / "export_report.json").read_text())
    assert (told["experts"], told["rank"], told["held_out"]) == (3, 6, True)
    assert told["calibration_tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert told["groups"]["answers"]["rows"] == 4
    assert told["lost"] == report.lost
    assert told["linears"].keys() == layers_of(model.get_base_model()).keys()
    assert "approximation of default, not the trained adapter" in (tmp_path / "a" / "b" / "README.md").read_text()
    assert "| answers | " in str(report)


def test_no_path_of_this_machine_is_published(adapted, batches, tmp_path, tiny_task):
    """But in adapter_config.json, which names the base model as PEFT does."""
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(tiny_task.base)
    source, tokenizer = str(tmp_path / "my_adapter"), AutoTokenizer.from_pretrained(tiny_task.base)
    report = loramoe.export_lora(
        model, tmp_path / "export", batches(), tokenizer=tokenizer, source=source, progress=False
    )
    assert (report.source, report.base_model, report.base_on_hub) == ("my_adapter", tiny_task.base.name, False)
    texts = {file.name: file.read_text() for file in (tmp_path / "export").iterdir() if file.suffix in (".json", ".md")}
    assert texts.keys() >= {"README.md", "export_report.json", "tokenizer_config.json"}
    assert json.loads(texts.pop(CONFIG))["base_model_name_or_path"] == str(tiny_task.base)
    for private in (tmp_path, tiny_task.base.parent, ROOT, Path.home(), Path.cwd()):
        assert str(private) not in "\n".join(texts.values())


def test_a_base_model_of_the_hub_is_linked(adapted, batches, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # else PEFT asks there for its vocabulary
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = "someone/base"
    report = loramoe.export_lora(model, tmp_path / "export", batches(), progress=False)
    assert (report.base_model, report.base_on_hub) == ("someone/base", True)
    assert 'base_model: "someone/base"' in (tmp_path / "export" / "README.md").read_text()


def test_equal_calls_write_equal_files(adapted, batches, tmp_path):
    for name in ("one", "two"):
        loramoe.export_lora(adapted(), tmp_path / name, batches(), progress=False)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_model_is_left_as_it_was(adapted, batches, ids, tmp_path):
    model = adapted()
    before, parameters, logits = trainable(model), dict(model.named_parameters()), model(ids).logits
    loramoe.export_lora(model, tmp_path / "export", batches(), progress=False)
    assert trainable(model) == before
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(ids).logits, logits)


def test_without_matplotlib_there_is_no_figure(adapted, batches, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    loramoe.export_lora(adapted(), tmp_path / "export", batches(), progress=False)
    assert {file.name for file in (tmp_path / "export").iterdir()} == FILES - {"export_linears.png"}
    assert "export_linears" not in (tmp_path / "export" / "README.md").read_text()


def test_recall_of_the_three(adapted, batches, tmp_path, tiny_task):
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    model = adapted()
    prompt = tokenizer("w1 w2 w3", return_tensors="pt").input_ids
    said = model.generate(input_ids=prompt, max_new_tokens=1, do_sample=False)[0, -1:]
    with model.disable_adapter():
        says = model.generate(input_ids=prompt, max_new_tokens=1, do_sample=False)[0, -1:]
    assert said != says
    probes = [Probe("w1 w2 w3", tokenizer.decode(said)), Probe("w1 w2 w3", tokenizer.decode(says))]
    report = loramoe.export_lora(
        model, tmp_path / "export", batches(), tokenizer=tokenizer, probes=probes, progress=False
    )
    assert report.recall["mixture"] == report.recall["base"] == 0.5
    assert report.recall.keys() == {"base", "mixture", "export"}
    assert AutoTokenizer.from_pretrained(tmp_path / "export")("w1").input_ids == tokenizer("w1").input_ids


def earlier_export(folder: Path) -> None:
    folder.mkdir()
    (folder / "export_report.json").write_text('{"files": ["export_report.json"]}')


def test_a_used_folder_stays(adapted, batches, tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path / "trained")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "export_report.json").write_text("{}")
    earlier_export(tmp_path / "earlier")
    (tmp_path / "file").write_text("mine")
    no_export = "is in use, and by no earlier export: no export_report.json that lists its files is in it. Choose"
    for name, overwrite, message in (
        ("trained", True, no_export),
        ("odd", True, no_export),
        ("earlier", False, "holds an earlier export. Choose another folder, or replace it with overwrite"),
        ("file", True, "is a file, not a folder"),
    ):
        with pytest.raises(ExportError, match=re.escape(f"{tmp_path / name} {message}")):
            loramoe.export_lora(model, tmp_path / name, batches(), overwrite=overwrite, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"trained", "odd", "earlier", "file"}
    assert (tmp_path / "trained" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("others", [["notes.txt"], ["config.json", "model.safetensors"], ["checkpoints"]])
def test_what_lies_beside_an_earlier_export_stays(adapted, batches, tmp_path, others):
    earlier_export(tmp_path / "export")
    for name in others:
        (tmp_path / "export" / name).write_text("mine")
    message = f"{tmp_path / 'export'} holds more than an earlier export: {others}. Move that away, or choose another f"
    with pytest.raises(ExportError, match=re.escape(message)):
        loramoe.export_lora(adapted(), tmp_path / "export", batches(), overwrite=True, progress=False)
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"export_report.json", *others}


def test_a_whole_export_is_replaced_with_its_tokenizer(adapted, batches, tmp_path, tiny_task):
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    loramoe.export_lora(adapted(), tmp_path / "export", batches(), tokenizer=tokenizer, progress=False)
    assert (tmp_path / "export" / "tokenizer.json").is_file()
    loramoe.export_lora(adapted(), tmp_path / "export", batches(), overwrite=True, progress=False)
    assert {file.name for file in (tmp_path / "export").iterdir()} == FILES


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder(adapted, batches, tmp_path, exists):
    if exists:
        (tmp_path / "disk").mkdir()
    (tmp_path / "export").symlink_to(tmp_path / "disk", target_is_directory=True)
    for overwrite in (False, True):
        loramoe.export_lora(adapted(), tmp_path / "export", batches(), overwrite=overwrite, progress=False)
        assert (tmp_path / "export").is_symlink()
        assert {file.name for file in (tmp_path / "disk").iterdir()} == FILES
        assert {path.name for path in tmp_path.iterdir()} == {"disk", "export"}


def test_a_used_folder_is_replaced_when_that_is_said(adapted, batches, tmp_path):
    earlier_export(tmp_path / "export")
    loramoe.export_lora(adapted(), tmp_path / "export", batches(), overwrite=True, progress=False)
    assert {file.name for file in (tmp_path / "export").iterdir()} == FILES
    told = json.loads((tmp_path / "export" / "export_report.json").read_text())
    assert set(told["files"]) == FILES
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("fails", ["_write", "sync_all", "os.replace"])
def test_a_failure_leaves_what_was_there(adapted, batches, tmp_path, monkeypatch, fails):
    earlier_export(tmp_path / "export")
    replace, calls = os.replace, []

    def fail(*args):
        calls.append(args)
        if fails == "os.replace" and len(calls) != 2:  # the second would put the new folder in its place
            return replace(*args)
        raise OSError("disk full")

    monkeypatch.setattr(f"loramoe.export.run.{fails}", fail)
    with pytest.raises(OSError, match="disk full"):
        loramoe.export_lora(adapted(), tmp_path / "export", batches(), overwrite=True, progress=False)
    assert os.listdir(tmp_path) == ["export"]
    assert os.listdir(tmp_path / "export") == ["export_report.json"]
    assert (tmp_path / "export" / "export_report.json").read_text() == '{"files": ["export_report.json"]}'


def test_rows_that_can_be_read_once_only(adapted, batches, tmp_path):
    with pytest.raises(ExportError, match="calibration can be read once only"):
        loramoe.export_lora(adapted(), tmp_path / "export", iter(batches()), progress=False)
    loramoe.export_lora(adapted(), tmp_path / "export", iter(batches()), iter(batches()), progress=False)


def test_probes_need_a_tokenizer(adapted, batches, tmp_path):
    with pytest.raises(ExportError, match="probes are asked as text, which needs a tokenizer"):
        loramoe.export_lora(adapted(), tmp_path / "export", batches(), probes=[Probe("a", "b")], progress=False)


@pytest.mark.parametrize("imports", ["import loramoe, peft", "import loramoe.export.__main__, loramoe"])
def test_the_name_is_the_function_however_it_is_imported(imports):
    code = f"{imports}; assert loramoe.export_lora.__name__ == 'export_lora'; assert callable(loramoe.export_lora)"
    code += "; from loramoe import export_lora; from peft import LoraMoeConfig"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
