"""The command: base against adapters in one table, and nothing finished is lost or done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe import LoraMoeConfig
from loramoe.data import PromptFormat, save_prompt_format
from loramoe.evaluate import main
from loramoe.evaluation import Settings, prepare, read_task, score
from loramoe.loading import load

BASE_NAME = "base_model_name_or_path"


@pytest.fixture
def adapter(tiny_task, tmp_path: Path) -> Path:
    """An adapter that changes the base model's answers."""
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    config = LoraMoeConfig(lora_nums=2, lora_alpha=320, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def flags(tiny_task, adapter: Path, tmp_path: Path) -> list[str]:
    files = [str(tiny_task.test_file), str(tiny_task.recall_file)]
    small = ["--max_new_tokens", "4", "--batch_size", "5", "--device", "cpu"]
    return ["--adapter", str(adapter), "--file", *files, "--output_dir", str(tmp_path / "out"), *small]


def scores(folder: Path, model: str, task: str = "test") -> list[dict]:
    return json.loads((folder / "scores" / f"{task}--{model}.json").read_text())["scores"]


def test_base_and_adapter_in_one_table(tiny_task, adapter, flags, tmp_path, capsys) -> None:
    main(flags)
    said = capsys.readouterr().out
    assert "base, test: 12 questions, " in said
    table = (tmp_path / "out/results.md").read_text()
    assert table.splitlines()[0] in said
    lines = json.loads((tmp_path / "out/results.json").read_text())["lines"]
    assert {(line["task"], line["task_type"]) for line in lines} == {
        ("test", None),
        ("test", 0),
        ("test", 1),
        ("recall", None),
    }
    (perplexity,) = [li for li in lines if (li["task"], li["task_type"], li["metric"]) == ("test", None, "perplexity")]
    value = {name: one["value"] for name, one in perplexity["values"].items()}
    assert perplexity["differences"]["adapter"]["value"] == value["adapter"] - value["base"]


def test_each_row_is_that_of_the_model_alone(tiny_task, adapter, flags, tmp_path) -> None:
    main(flags)
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    settings = Settings(max_new_tokens=4)
    prepared = prepare(read_task(tiny_task.test_file), tokenizer, settings)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    assert scores(tmp_path / "out", "base") == score(base, tokenizer, prepared, settings, 5, progress=False)
    adapted, _ = load(None, str(adapter))
    expected = score(adapted, tokenizer, prepared, settings, 5, progress=False)
    assert scores(tmp_path / "out", "adapter") == expected
    assert scores(tmp_path / "out", "adapter") != scores(tmp_path / "out", "base")


def test_what_is_finished_is_not_done_again(flags, adapter, tmp_path, capsys, monkeypatch) -> None:
    asked = []

    def fails_at_last(model, tokenizer, task, *rest):
        asked.append(task.task.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return score(model, tokenizer, task, *rest, progress=False)

    monkeypatch.setattr("loramoe.evaluate.score", fails_at_last)
    with pytest.raises(KeyboardInterrupt):
        main(flags)
    assert asked == ["test", "recall", "test", "recall"]
    capsys.readouterr()
    main(flags)
    assert asked[4:] == ["recall"]
    assert capsys.readouterr().out.count("found in ") == 3
    shutil.copytree(adapter, tmp_path / "other")
    main([*flags[:2], f"copy={tmp_path / 'other'}", *flags[2:]])
    assert asked[5:] == ["test", "recall"]
    assert scores(tmp_path / "out", "copy") == scores(tmp_path / "out", "adapter")


@pytest.mark.parametrize("damage", ["cut off", "of other sizes"])
def test_an_adapter_that_cannot_be_loaded_costs_nothing_that_is_finished(
    damage, adapter, flags, tmp_path, capsys
) -> None:
    file = adapter / "adapter_model.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        config = adapter / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3}))
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"the adapter {adapter} cannot be loaded on this base: " in said
    assert f"What is finished is kept in {tmp_path / 'out'}." in said
    assert len(scores(tmp_path / "out", "base")) == 12


def test_another_tokenizer_is_another_question(tiny_task, adapter, flags, capsys) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    main(flags)
    main(flags)
    assert capsys.readouterr().out.count("found in ") == 4
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(adapter)
    main(flags)
    assert "found in " not in capsys.readouterr().out


def test_an_adapter_whose_scores_are_all_found_is_not_loaded(flags, monkeypatch) -> None:
    main(flags)
    monkeypatch.setattr("peft.PeftModel.from_pretrained", lambda *_: pytest.fail("it was loaded"))
    main(flags)


def test_likelihoods_that_are_not_finite_cost_nothing_that_is_finished(adapter, flags, tmp_path, capsys) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value * torch.nan for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "expected finite log-likelihoods, got nan from logits in torch.float32. Load the model with" in said
    assert f"What is finished is kept in {tmp_path / 'out'}." in said
    assert len(scores(tmp_path / "out", "base")) == 12


def test_adapters_that_cannot_be_compared_are_refused_first(tiny_task, adapter, flags, tmp_path, capsys) -> None:
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_task.base), config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(SystemExit):
        main([*flags, "--adapter", str(adapter), str(tmp_path / "prompt")])
    assert "is of type PROMPT_TUNING, whose virtual tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_where_results_should_go(flags, tmp_path, capsys) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit):
        main(flags)
    said = capsys.readouterr()
    assert f"set --output_dir to a folder that can be written to, got {tmp_path / 'out'}: " in said.err
    assert "questions" not in said.out


def test_the_base_model_alone(tiny_task, flags, tmp_path) -> None:
    main(["--model", str(tiny_task.base), *flags[2:], "--measure", "likelihood"])
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["models"]) == ["base"]
    assert {line["metric"] for line in results["lines"]} == {"log-likelihood", "perplexity"}
    assert results["settings"]["measures"] == ["likelihood"]
    assert results["command"].startswith("python -m loramoe.evaluate --model ")


def test_the_layout_is_that_of_the_training(adapter, flags, tmp_path, caplog) -> None:
    tokenizer = AutoTokenizer.from_pretrained(json.loads((adapter / "adapter_config.json").read_text())[BASE_NAME])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} w9 {% endfor %}"
    tokenizer.save_pretrained(adapter)
    save_prompt_format(adapter, PromptFormat("chat"))
    for wish, template in (([], "chat"), (["--template", "release"], "release")):
        main([*flags, "--measure", "likelihood", *wish])
        assert json.loads((tmp_path / "out/results.json").read_text())["settings"]["prompt_template"] == template
    assert len([record for record in caplog.records if record.name == "loramoe.data.templates"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--file": "none.json"}, "data path 'none.json' does not exist"),
        ({"--adapter": "none"}, "no adapter at none: adapter_config.json is not there. Correct the path."),
        (
            {"--adapter": "base=none"},
            "no adapter can be called 'base', as the base model is. Give another name: NAME=DIR",
        ),
        ({"--model": "./none"}, "no tokenizer could be loaded from './none'"),
        ({"--prompt_template": "chat"}, "the prompt template 'chat' needs tokenizer.chat_template"),
        ({"--load_in_kbits": "3"}, "load_in_kbits must be 4, 8 or 16; got load_in_kbits=3"),
        ({"--device": "cuda:99"}, "set --device to one that is here, got 'cuda:99': "),
        ({"--batch_size": "0"}, "argument --batch_size: expected a whole number of at least 1, got '0'. Raise it."),
        ({"--max_seq_length": "2"}, "none of the 12 rows fits"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, changes, message: str, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*flags, *next(iter(changes.items()))])
    assert ended.value.code != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
