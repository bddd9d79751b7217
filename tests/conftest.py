"""What several test files build: a tiny Llama, and LoRAMoE on it with weights away from their starting values."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compiled import compiled_for_cpu

VOCABULARY = 64
ORIGINAL = Path(__file__).parent / "golden" / "six_experts_balanced" / "adapter"  # of the original release


def pytest_configure(config: pytest.Config) -> None:
    """Settles the seed of tests/chaos and tests/fuzz, before workers of the tests are started: they inherit it.

    It is fixed, so that a change is judged by what it changes, not by luck; CHAOS_SEED=random goes looking for more.
    """
    if os.environ.setdefault("CHAOS_SEED", "1") == "random":
        os.environ["CHAOS_SEED"] = str(random.SystemRandom().randrange(1, 10**6))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests start dozens of processes: on a busy machine they get half an hour, where others get ten minutes.

    They come first, those that tell their minutes before the others: a long one that begins last leaves all workers
    but its own without work.
    """
    items.sort(key=_minutes, reverse=True)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def _minutes(item: pytest.Item) -> float:
    slow = item.get_closest_marker("slow")
    return float(slow.kwargs.get("minutes", 1)) if slow else 0


def pytest_report_header(config: pytest.Config) -> str:
    """Tells the seed of tests/chaos and tests/fuzz, so that a failure can be drawn again."""
    return f"CHAOS_SEED={os.environ['CHAOS_SEED']} draws the same failures again, CHAOS_SEED=random others"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Adds up what tests count, such as the runs that were killed: the figures of docs/reliability.md."""
    sums: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            sums[name] = sums.get(name, 0) + count
    if sums:
        terminalreporter.section(f"counted, with CHAOS_SEED={os.environ['CHAOS_SEED']}")
        for name, total in sorted(sums.items()):
            terminalreporter.line(f"{name}: {total:,}")


@pytest.fixture(scope="session")
def zero() -> None:
    """Skips where ZeRO cannot run on a CPU; else has DeepSpeed compile what it compiles at its first use."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles for the CPU with g++, which is not there")
    os.environ["TORCH_EXTENSIONS_DIR"] = str(compiled_for_cpu())  # for the rest of the session, and all that it starts


@pytest.fixture
def ids() -> Tensor:
    """Token ids [2, 10], without the special ones."""
    return torch.arange(3, 23).reshape(2, 10)


@pytest.fixture
def tiny_llama() -> Callable[..., nn.Module]:
    """Makes a Llama of 2 layers with random weights, in evaluation mode; equal seeds make equal models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return LlamaForCausalLM(LlamaConfig(**size, **heads, **tokens, max_position_embeddings=64)).eval()

    return make


@pytest.fixture
def perturb() -> Callable[..., nn.Module]:
    """Draws every adapter weight anew, so that B is not zero and nothing can be right by accident."""

    def draw(model: nn.Module, seed: int = 7) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "loramoe_" in name or "modules_to_save" in name:
                new = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.data.copy_(new)
        return model

    return draw


@pytest.fixture
def adapted(tiny_llama: Callable[..., nn.Module], perturb: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Makes a PeftModel of the tiny Llama with a perturbed LoRAMoE adapter, in evaluation mode."""
    from peft import LoraMoeConfig, get_peft_model

    def make(**options: Any) -> nn.Module:
        config = LoraMoeConfig(**{"lora_nums": 3, "r": 2, "task_type": "CAUSAL_LM"} | options)
        return perturb(get_peft_model(tiny_llama(), config)).eval()

    return make


@pytest.fixture
def saved(adapted: Callable[..., Any], tmp_path: Path) -> Path:
    """Folder of a saved adapter, whose configuration names a saved base model beside it."""
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    model.unload().save_pretrained(tmp_path / "base")
    return tmp_path / "adapter"


@pytest.fixture
def two(adapted: Callable[..., Any], perturb: Callable[..., Any]) -> Any:
    """A model with two adapters: 3 experts of rank 2 on the MLP, and 5 of rank 3 on q_proj and up_proj."""
    from peft import LoraMoeConfig

    model = adapted()
    model.add_adapter("two", LoraMoeConfig(lora_nums=5, r=3, target_modules=["q_proj", "up_proj"]))
    return perturb(model)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A copy of the original adapter, to be spoilt."""
    return Path(shutil.copytree(ORIGINAL, tmp_path / "original"))


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """The original adapter, converted."""
    from loramoe.export.original import convert

    convert(ORIGINAL, tmp_path / "ours")
    return tmp_path / "ours"


# --- a base model with its tokenizer and data on disk, for whatever trains or generates as a user would ---------------

WORDS = [f"w{index}" for index in range(60)]


@dataclass(frozen=True)
class TinyTask:
    """Paths of a tiny base model and of data for it."""

    base: Path
    train_dir: Path
    test_file: Path
    recall_file: Path
    cache: Path

    def flags(self, output_dir: Path, **changes: object) -> list[str]:
        """Flags of `train.py` for a run of a few steps; None takes one away."""
        values: dict[str, object] = {
            "model_name_or_path": self.base,
            "dataset_dir": self.train_dir,
            "validation_file": self.test_file,
            "output_dir": output_dir,
            "max_seq_length": 32,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "logging_steps": 2,
            "save_steps": 3,
            "use_cpu": "true",
            "disable_tqdm": "true",
            "experts_page": "false",  # tests of it ask for it: it takes as long as such a run
            **changes,
        }
        return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def _tokenizer_of_words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _rows(count: int, seed: int) -> list[dict[str, object]]:
    draw = random.Random(seed)
    return [
        {
            "instruction": " ".join(draw.choices(WORDS, k=draw.randrange(2, 9))),
            "input": "",
            "output": " ".join([draw.choice(WORDS[:5])] * draw.randrange(1, 4)),
            "task_type": index % 2,
        }
        for index in range(count)
    ]


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> TinyTask:
    """A Llama of 2 layers and hidden size 32, 48 rows to train on, 12 to test on, 6 probes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from loramoe.compat.tokenizer import save_tokenizer

    root = tmp_path_factory.mktemp("tiny_task")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**size, **tokens)).save_pretrained(root / "base")
    save_tokenizer(_tokenizer_of_words(), root / "base")
    probes = [{"prompt": " ".join(WORDS[: 2 + n]), "answer": WORDS[n]} for n in range(6)]
    (root / "train").mkdir()
    for name, value in (("train/train", _rows(48, 1)), ("test", _rows(12, 2)), ("recall", probes)):
        (root / f"{name}.json").write_text(json.dumps(value))
    return TinyTask(root / "base", root / "train", root / "test.json", root / "recall.json", root / "cache")


@pytest.fixture
def saved_on_tiny_task(tiny_task: TinyTask, tmp_path: Path) -> str:
    """Folder of an adapter, without a tokenizer, that changes what the base model of TinyTask answers."""
    from peft import LoraMoeConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    config = LoraMoeConfig(lora_nums=2, lora_alpha=320, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.fixture
def own_dataset_cache(tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tokenised data of tests out of the user's cache, for this process and for those it starts."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tiny_task.cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tiny_task.cache))


@pytest.fixture
def train(own_dataset_cache: None, tiny_task: TinyTask) -> Callable[..., dict[str, dict[str, float]]]:
    """Runs `train.py` in this process: `train(output_dir, flag=value, …)`."""
    from loramoe.training import parse, run_sft

    def start(output_dir: Path, **changes: object) -> dict[str, dict[str, float]]:
        return run_sft(parse(tiny_task.flags(output_dir, **changes)))

    return start


POISON = "w7"


@pytest.fixture
def poisoned(tiny_task, tmp_path: Path) -> Path:
    """Training rows of which the 14th holds a word whose embedding is infinite, and the base model with it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = json.loads((tiny_task.train_dir / "train.json").read_text())
    rows = [{**row, "instruction": row["instruction"].replace(POISON, "w8")} for row in rows]
    rows[13]["instruction"] = f"w1 {POISON} w2"
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.json").write_text(json.dumps(rows))
    model = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(POISON)] = torch.inf
    for folder in (model, tokenizer):
        folder.save_pretrained(tmp_path / "base")
    return tmp_path
