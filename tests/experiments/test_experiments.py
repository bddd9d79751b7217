"""The experiments: what is measured, trained and compared, on models and numbers small enough to check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from experiments import methods, real_data, runs
from experiments.measure import Request, answer, kl_to_base
from experiments.runs import Plan, Run, kept_rates, runs_of, work_through
from experiments.train import Sample, packed, train

PROMPT, CANDIDATES = [3, 5, 7], [[11, 2], [13, 17, 2], [4]]


def tiny_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=64, **shape)).eval()


@pytest.fixture
def model() -> Any:
    return tiny_model()


# --- Measures --------------------------------------------------------------------------------------------------------


def one_by_one(model: Any, request: Request) -> list[float]:
    """Log-likelihood of each candidate, each in a forward pass of its own."""
    found = []
    for candidate in request.candidates:
        ids = torch.tensor([[*request.prompt, *candidate]])
        logp = model(ids).logits.log_softmax(dim=-1)[0, len(request.prompt) - 1 : -1]
        found.append(float(logp.gather(1, torch.tensor(candidate)[:, None]).sum()))
    return found


@torch.no_grad()
def test_candidates_are_measured_as_if_each_were_alone(model: Any) -> None:
    requests = [Request(PROMPT, CANDIDATES, right=1), Request([9], [[8, 6]]), Request([1, 2], [[3], [4]], right=0)]
    found = answer(model, requests)
    first, second, third = (one_by_one(model, request) for request in requests)
    expected = [np.logaddexp.reduce(first) - first[1], -second[0], np.logaddexp.reduce(third) - third[0]]
    assert found.loss == pytest.approx(expected, abs=1e-5)
    assert found.tokens.tolist() == [3, 2, 1]
    assert found.right[0] == (np.argmax(first) == 1)
    assert found.right[2] == (np.argmax(third) == 0)


@torch.no_grad()
def test_right_means_what_greedy_decoding_gives(model: Any) -> None:
    greedy = model.generate(torch.tensor([PROMPT]), max_new_tokens=3, do_sample=False, eos_token_id=None)[
        0, 3:
    ].tolist()
    other = [*greedy[:2], (greedy[2] + 1) % 32]
    assert answer(model, [Request(PROMPT, [greedy]), Request(PROMPT, [other])]).right.tolist() == [True, False]


def test_kl_is_zero_to_itself_and_the_definition_to_another(model: Any) -> None:
    other, request = tiny_model(1), Request([5], [[7, 9]])
    assert kl_to_base(model, model, [request]) == 0
    with torch.no_grad():
        p, q = (each(torch.tensor([[5, 7]])).logits.log_softmax(dim=-1)[0] for each in (model, other))
    assert kl_to_base(other, model, [request]) == pytest.approx(float((p.exp() * (p - q)).sum() / 2), rel=1e-4)


# --- Methods and training --------------------------------------------------------------------------------------------


def test_adapters_have_about_the_same_size_and_start_as_the_base_model(model: Any) -> None:
    ids, counts = torch.tensor([[3, 5, 7]]), {}
    expected = model(ids).logits
    for name in ("lora", "loramoe", "equal_gates"):
        tuned = methods.apply_method(tiny_model(), name).eval()
        counts[name] = methods.trainable_parameters(tuned)
        torch.testing.assert_close(tuned(ids).logits, expected)
    assert 0.9 <= counts["loramoe"] / counts["lora"] <= 1.4
    assert counts["equal_gates"] < counts["loramoe"]


@pytest.mark.parametrize("name", ["full", "lora", "loramoe"])
def test_a_scaled_update_goes_from_the_base_model_to_the_tuned_one(name: str, model: Any) -> None:
    tuned = methods.apply_method(tiny_model(), name).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) if parameter.requires_grad else 0)
    ids, base = torch.tensor([[3, 5, 7]]), model.state_dict()
    before = tuned(ids).logits
    for share, expected in ((0.0, model(ids).logits), (1.0, before)):
        with methods.scaled_update(tuned, base, share):
            torch.testing.assert_close(tuned(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(tuned(ids).logits, before)


SAMPLES = [Sample([3, number % 20], [number % 7 + 20, 2], number % 2) for number in range(64)]


@torch.no_grad()
def test_packed_samples_do_not_see_each_other(model: Any) -> None:
    first, second = Sample([3, 5], [7, 2], 0), Sample([9], [8, 6, 2], 1)
    alone = [float(model(**packed([sample], with_types=False)).loss) for sample in (first, second)]
    together = float(model(**packed([first, second], with_types=False)).loss)
    assert together == pytest.approx((2 * alone[0] + 3 * alone[1]) / 5, rel=1e-5)


def test_training_stops_at_the_last_checkpoint_and_reports_the_routing() -> None:
    torch.manual_seed(0)
    model, seen = methods.apply_method(tiny_model(), "loramoe"), list[int]()
    report = train(model, SAMPLES, 1e-2, [60, 150], seen.append)
    assert seen == [60, 150]
    assert 0 < min(report["knowledge_group_by_type"]) < max(report["knowledge_group_by_type"]) < 1
    with pytest.raises(ValueError, match="256 tokens"):
        train(model, SAMPLES, 1e-2, [1_000], seen.append)


# --- The grid --------------------------------------------------------------------------------------------------------

PLAN = Plan(
    {"full": (1e-4, 2e-4, 4e-4), "adapter": (1e-3, 2e-3, 4e-3)}, ("full", "lora", "loramoe"), ("no_constraint",), 2
)


def result(method: str, rate: float, seed: int, learnt: float = 1.0, lost: float = 0.5) -> dict[str, Any]:
    """A run of three checkpoints that learns and loses in straight lines; its final values are in its last one."""
    points = [
        {
            "downstream_loss": 3 - share * learnt,
            "knowledge_loss": 1 + share * lost,
            "kl_knowledge": share,
            "share": share,
        }
        for share in (0.0, 0.5, 1.0)
    ]
    made = {"commit": "0123456789ab", "processor": "a processor", "precision": "float32"}
    return {
        **{"method": method, "rate": rate, "seed": seed, "checkpoints": points, "interpolated": points[1:2]},
        **{"final": points[-1], "knowledge_group_by_type": [0.4, 0.6], "made_with": made},
    }


def whole_grid(gain: float = 0.2) -> list[dict[str, Any]]:
    """A complete grid: at rate 4e-3 the adapters learn least; LoRAMoE loses `gain` nats less than LoRA for each nat."""
    found = []
    for run in [Run(name, rate, 0) for name in PLAN.methods for rate in PLAN.rates[runs.kind_of(name)]]:
        found.append(result(run.method, run.rate, 0, learnt=0.1 if run.rate == 4e-3 else 1.0))
    for run in runs_of(PLAN, found):
        learnt = 0.1 if run.rate == 4e-3 else 1.0 + 0.1 * run.seed
        loss = 0.5 + 0.01 * run.seed - (gain if run.method == "loramoe" else 0)
        found = [old for old in found if runs.run_of(old) != run]
        found.append(result(run.method, run.rate, run.seed, learnt, loss * learnt))
    return found


def test_the_first_seed_runs_three_rates_and_the_others_the_two_that_learn_most() -> None:
    assert len(runs_of(PLAN, [])) == 9
    grid = whole_grid()
    assert kept_rates(PLAN, grid, "adapter") == (1e-3, 2e-3)
    later = [run for run in runs_of(PLAN, grid) if run.seed == 1]
    assert [run.rate for run in later if run.method == "lora"] == [1e-3, 2e-3]
    assert [run.rate for run in later if run.method == "no_constraint"] == [2e-3]


def test_a_grid_resumes_and_leaves_one_file_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[str]()

    def execute(run: Run, scale: Any) -> dict[str, Any]:
        made.append(run.file)
        if len(made) == 4:
            raise KeyboardInterrupt
        return result(run.method, run.rate, run.seed) | {"seconds": 1}

    scale = type("Scale", (), {"plan": PLAN, "check": lambda self, results: None})()
    monkeypatch.setattr(runs, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        work_through(scale, tmp_path, log=lambda line: None)
    assert len(list(tmp_path.iterdir())) == 3
    work_through(scale, tmp_path, log=lambda line: None)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(set(made))
    assert made[3] == made[4]


def test_halves_come_back() -> None:
    values = np.array([0.0, 1.5, 13.25])
    assert runs.read_halves(runs.write_halves(values)).tolist() == values.tolist()


# --- Analysis and page -----------------------------------------------------------------------------------------------


def test_the_contrast_is_taken_at_equal_learning() -> None:
    analysis = pytest.importorskip("experiments.analysis", reason="needs pandas and scipy")
    grid = whole_grid()
    found = analysis.contrast(PLAN, grid, "loramoe", "lora")
    # Seed 1 learns 1.1 nats, so LoRAMoE loses 0.2 · 1.1 nats less.
    assert (found.mean, found.n) == (pytest.approx(-0.21), 2)
    assert found.low == pytest.approx(-0.21 - 12.706 * 0.01, abs=1e-3)
    faster = [result("lora", 2e-3, 0, learnt=2.0, lost=1.0), result("loramoe", 2e-3, 0, learnt=1.0, lost=0.3)]
    assert analysis.rise_at(faster[0], 1.0, "learning") == pytest.approx(0.5)
    assert analysis.rise_at(faster[1], 1.0, "learning") == pytest.approx(0.3)


@pytest.mark.parametrize(("gain", "word"), [(0.2, "less"), (0.0, "not beat"), (-0.2, "more")])
def test_the_first_sentence_is_the_answer(gain: float, word: str) -> None:
    page = pytest.importorskip("experiments.page", reason="needs pandas, scipy and seaborn")
    analysis = pytest.importorskip("experiments.analysis")
    values = [-gain, -gain + 0.001, -gain - 0.001]
    report = page.answer({"tiny": analysis.t_interval(values), "real": None})
    assert word in report
    assert "not yet run" in report


def test_the_pages_say_what_the_results_give() -> None:
    page = pytest.importorskip("experiments.page", reason="needs pandas, scipy and seaborn")
    results = {name: runs.load_results(runs.RESULTS / name) for name in page.PLANS}
    assert page.pages.differing(page.blocks(results)) == []


# --- Data ------------------------------------------------------------------------------------------------------------


def write_trex(folder: Path, count: int = 60) -> Path:
    for kind in ("facts", "patterns"):
        (folder / kind).mkdir(parents=True)
    facts = [{"sub_label": f"Land {number}", "obj_label": f"City {number % 9}"} for number in range(count)]
    for relation in real_data.RELATIONS:
        (folder / "facts" / f"{relation}.jsonl").write_text("\n".join(map(json.dumps, facts)))
        pattern = {"pattern": f"The {relation} of [X] is [Y] ."}
        (folder / "patterns" / f"{relation}.jsonl").write_text(json.dumps(pattern))
    return folder


def test_statements_have_four_objects_and_no_subject_in_two_parts(tmp_path: Path) -> None:
    trex = write_trex(tmp_path / "trex")
    parts = {part: real_data.clozes(trex, part) for part in ("practice", "gate", "test")}
    for item in parts["test"]:
        assert len(set(item.candidates)) == 4
        number = int(item.prompt.split("Land ")[1].split()[0])
        assert item.candidates[item.right] == f"City {number % 9}"
    names = [{item.prompt.split("of ")[1] for item in items} for items in parts.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == 60
    assert {item.prompt.split()[1] for item in parts["test"][: len(real_data.RELATIONS)]} == set(real_data.RELATIONS)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--trex"):
        real_data.clozes(tmp_path / "nothing", "test")


@pytest.mark.slow
def test_the_real_scale_runs_from_healing_to_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import real
    from experiments.tiny import MODEL

    trex, data, healed, results = (tmp_path / name for name in ("trex", "data", "healed", "results"))
    write_trex(trex)
    data.mkdir()
    for language in ("english", "french"):
        lines = [
            {"title": f"Thing {n}", "summary": f"Thing {n} is a river.", "description": f"river {n}", "topic": "Nature"}
            for n in range(60)
        ]
        (data / f"{language}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    puzzles = [
        {"task": "gcd", "part": "test" if n < 9 else "train", "question": f"Of {n}?", "answer": str(n)}
        for n in range(40)
    ]
    (data / "gym.jsonl").write_text("\n".join(map(json.dumps, puzzles)))
    for name, value in {
        "SMALL": 40,
        "LARGE": 60,
        "HEALING_STEP": 300,
        "HEALED_TOKENS": 600,
        "RELEARNING_STEPS": 2,
    }.items():
        monkeypatch.setattr(real, name, value)
    monkeypatch.setattr(real.Real, "plan", Plan({"adapter": (1e-3,), "full": (1e-4,)}, ("loramoe",), (), 1))
    report = real.heal(MODEL, data, trex, healed, log=lambda line: None)
    assert len(report["sha256"]) == 64
    work_through(real.Real(healed, data, trex, tokens=1_200), results, log=lambda line: None)
    (file,) = results.iterdir()
    found = json.loads(file.read_text())
    assert [point["tokens"] for point in found["checkpoints"]] == [0, 80, 150, 300, 600, 1_200]
    assert found["checkpoints"][-1]["downstream_loss"] < found["checkpoints"][0]["downstream_loss"]
    assert len(runs.read_halves(found["final"]["knowledge_items"])) == 60
    assert {"descriptions_loss", "relearnt", "knowledge_group_by_type"} <= found.keys()
