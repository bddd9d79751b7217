"""The same data and seed give the same losses and the same adapter, however a step is divided among processes.

Process r of n takes every n-th batch, so one process that accumulates n batches sees the same ones in the same order.
Weights are compared by the norm of their difference, tensor by tensor: AdamW divides by what a weight's gradients were,
so of a weight that hardly got any, rounding decides where it goes.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.conftest import Finished, check, free_port

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def reference(runs: Any) -> Any:
    """One process that accumulates two batches."""
    return runs.alone("reference", gradient_accumulation_steps=2)


def assert_equal(run: Any, other: Any) -> None:
    losses, weights = run.apart(other)
    print(f"{run.folder.name}: losses {losses:.1e}, weights {weights:.1e} apart from {other.folder.name}")
    assert losses <= TOLERANCE
    assert weights <= TOLERANCE


def test_ddp(reference: Any, runs: Any) -> None:
    assert reference.losses[-1] < 0.97 * reference.losses[0]
    assert_equal(runs.together("ddp"), reference)
    # In batches of 5 the last one is filled up with repetitions, which must not count.
    changes = {"do_eval": "true", "per_device_eval_batch_size": 5, "padding_free": "true"}
    one, two = runs.alone("packed", gradient_accumulation_steps=2, **changes), runs.together("packed 2", **changes)
    assert_equal(two, one)
    assert two.metrics["after"]["loss"] == pytest.approx(one.metrics["after"]["loss"], rel=1e-5)


@pytest.mark.parametrize("config", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_zero(reference: Any, runs: Any, zero: None, config: str) -> None:
    assert_equal(runs.together(config, engine=config), reference)


def test_zero_3_with_checkpointing(reference: Any, runs: Any, zero: None) -> None:
    run = runs.together("zero3 checkpointing", engine="zero3", gradient_checkpointing="true")
    assert_equal(run, reference)


def test_two_processes_that_accumulate(runs: Any, zero: None) -> None:
    changes = {"per_device_train_batch_size": 2}
    one = runs.alone("accumulating 4", gradient_accumulation_steps=4, **changes)
    run = runs.together("2 x 2", engine="zero2", gradient_accumulation_steps=2, **changes)
    assert_equal(run, one)


def test_two_nodes(reference: Any, runs: Any) -> None:
    """Two launchers that meet on the loopback stand for two machines."""
    out, port = runs.folder / "two nodes", free_port()
    nodes = [
        runs.launch(out, {"nnodes": 2, "node_rank": rank, "nproc_per_node": 1, "master_port": port, "engine": "ddp"})
        for rank in (0, 1)
    ]
    for node in nodes:
        check(node)
    assert Finished(out).apart(runs.together("ddp")) == (0, 0)
    assert_equal(Finished(out), reference)
