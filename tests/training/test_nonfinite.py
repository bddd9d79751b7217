"""A loss that is NaN or infinite ends the run before it spoils a weight, or is left out; its rows are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from loramoe.data import PackedCollator, SftCollator
from loramoe.training import nonfinite as module
from loramoe.training.checkpoints import ADAPTER, METRICS
from loramoe.training.nonfinite import FOLDER, FiniteGuard, NonFiniteError, rows_of
from tests.conftest import POISON


@pytest.fixture
def run(train, poisoned: Path) -> Callable[..., object]:
    """Trains on the poisoned rows, one epoch of 12 steps."""
    flags = {"model_name_or_path": poisoned / "base", "dataset_dir": poisoned / "rows", "logging_steps": 1}
    flags |= {"max_steps": 12, "lora_dropout": 0, "eval_strategy": "no", "eval_on_start": "false"}
    return lambda name, **changes: train(poisoned / name, **{**flags, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ADAPTER / "adapter_model.safetensors")


@pytest.mark.parametrize("packing", ["false", "true"])
def test_the_run_stops_and_names_the_rows(run, poisoned: Path, packing: str):
    with pytest.raises(NonFiniteError, match=r"step \d+, rank 0: the loss is nan\. The rows.*--on_nonfinite skip") as e:
        run("out", packing=packing)
    (file,) = (poisoned / "out" / FOLDER).iterdir()
    assert str(file) in str(e.value)
    report = json.loads(file.read_text())
    assert report["what"] == "the loss is nan"
    assert len(report["rows"]) == 4
    (guilty,) = [row for row in report["rows"] if POISON in row["text"].split()]
    assert guilty["task_type"] == 1
    assert guilty["answer"].endswith("</s>")
    assert all(row["input_ids"][0] == 1 and 0 not in row["input_ids"] for row in report["rows"]), "padding among rows"
    assert not (poisoned / "out" / METRICS).exists()
    for saved in (poisoned / "out").glob("checkpoint-*"):
        assert all(weight.isfinite().all() for weight in weights(saved).values())


def test_the_micro_batch_is_left_out_and_counted(run, poisoned: Path):
    run("out", on_nonfinite="skip", gradient_accumulation_steps=2, max_steps=6)
    assert all(weight.isfinite().all() for weight in weights(poisoned / "out").values())
    history = json.loads((poisoned / "out" / "trainer_state.json").read_text())["log_history"]
    skipped = [entry["skipped"] for entry in history if "skipped" in entry]
    assert skipped == sorted(skipped)
    assert skipped[-1] == 1
    assert all(torch.isfinite(torch.tensor(entry["blc"])) for entry in history if "blc" in entry)
    assert len(list((poisoned / "out" / FOLDER).iterdir())) == 1


def test_without_such_a_loss_skipping_changes_nothing(train, tmp_path: Path):
    for action in ("stop", "skip"):
        train(tmp_path / action, on_nonfinite=action)
        assert not (tmp_path / action / FOLDER).exists()
    stop, skip = weights(tmp_path / "stop"), weights(tmp_path / "skip")
    assert all(torch.equal(stop[name], skip[name]) for name in stop)


class TestGuard:
    """The guard by itself, on one weight."""

    @pytest.fixture
    def weight(self) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.ones(2))

    @pytest.fixture
    def state(self) -> SimpleNamespace:
        return SimpleNamespace(global_step=4)

    @pytest.fixture
    def make(self, weight: torch.nn.Parameter, tmp_path: Path, state: SimpleNamespace) -> Iterator[Callable]:
        args = SimpleNamespace(output_dir=str(tmp_path), process_index=3, fp16=False)
        batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[-100, 6]])}
        batch["attention_mask"] = torch.ones(1, 2)
        tokenizer = SimpleNamespace(decode=str)

        def guard(action: str, **options: object) -> SimpleNamespace:
            made = FiniteGuard(tokenizer, action, **options)
            made.on_train_begin(args, state, None, model=torch.nn.ParameterList([weight]))
            step = lambda: made.on_pre_optimizer_step(args, state, None)  # noqa: E731
            return SimpleNamespace(
                guard=made, args=args, loss=lambda loss: made.check_loss(loss, batch, args, state), step=step
            )

        return guard

    def test_the_gradient_of_a_loss_that_is_left_out_is_zero(self, make, weight: torch.nn.Parameter):
        skip = make("skip")
        for factor, gradient in ((3.0, 3.0), (float("inf"), 3.0), (2.0, 5.0)):  # accumulated
            loss = (weight * factor).sum()
            skip.loss(loss)
            loss.backward()
            assert weight.grad.tolist() == [gradient, gradient]
        assert skip.guard.skipped == 1

    def test_a_gradient_that_is_not_finite_stops_the_run(self, make, weight: torch.nn.Parameter, tmp_path: Path):
        stop = make("stop")
        stop.loss(torch.tensor(1.0))
        weight.grad = torch.tensor([1.0, float("nan")])
        with pytest.raises(NonFiniteError, match=r"step 5, rank 3: the gradient's norm is nan, of a finite loss"):
            stop.step()
        report = json.loads((tmp_path / FOLDER / "step-5-rank-3-1.json").read_text())
        assert report["rows"] == [{"text": "tensor([5, 6])", "answer": "[6]", "input_ids": [5, 6]}]

    def test_a_gradient_that_is_not_finite_is_left_out(self, make, weight: torch.nn.Parameter):
        skip = make("skip")
        optimizer = torch.optim.AdamW([weight], weight_decay=0.1)
        for gradient, moved in ((1.0, True), (float("inf"), False), (1.0, True)):
            before = weight.detach().clone()
            weight.grad = torch.full((2,), gradient)
            skip.step()
            optimizer.step()
            assert torch.equal(weight, before) is not moved

    def test_with_fp16_the_gradient_is_the_scalers(self, make, weight: torch.nn.Parameter):
        stop = make("stop")
        stop.args.fp16 = True
        weight.grad = torch.tensor([1.0, float("inf")])
        stop.step()
        assert weight.grad is not None

    @pytest.mark.parametrize("action", ["stop", "skip"])
    def test_deepspeed_has_taken_its_step_and_can_only_stop(self, make, action: str):
        norms = iter([None, 1.0, float("inf")])
        guard = make(action, engine=lambda: SimpleNamespace(get_global_grad_norm=lambda: next(norms)))
        guard.step()
        guard.step()
        with pytest.raises(NonFiniteError, match="the gradient's norm is inf"):
            guard.step()

    def test_reports_have_an_end_and_the_count_has_none(self, make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "MAX_FILES", 2)
        skip = make("skip")
        for _ in range(5):
            skip.loss(torch.tensor(float("nan")))
        assert skip.guard.skipped == 5
        assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_rows_read_alike_padded_and_packed():
    features = [
        {"input_ids": [1, 5, 2, 6, 2], "labels": [-100, -100, -100, 6, 2], "task_types": 1},
        {"input_ids": [1, 7, 2], "labels": [-100, 7, 2], "task_types": 0},
    ]
    tokenizer = SimpleNamespace(decode=lambda ids: " ".join(str(int(i)) for i in ids))
    padded, packed = (rows_of(collate(features), tokenizer) for collate in (SftCollator(0), PackedCollator()))
    assert padded == packed
    assert padded[1] == {"text": "1 7 2", "answer": "7 2", "input_ids": [1, 7, 2], "task_type": 0}
