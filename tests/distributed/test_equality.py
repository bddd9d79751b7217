"""The same data and seed give the same losses and the same adapter, however a step is divided among processes.

Process r of n takes every n-th batch, so one process that accumulates n batches sees the same ones in the same order.
Weights are compared by the norm of their difference, tensor by tensor: AdamW divides by what a weight's gradients were,
so of a weight that hardly got any, rounding decides where it goes.
"""

from __future__ import annotations

import json
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


def test_the_reference_learns_from_uneven_rows(reference: Any, runs: Any) -> None:
    rows = json.loads((runs.task.train_dir / "train.json").read_text())
    for field in ("instruction", "output"):
        assert len({len(row[field].split()) for row in rows}) > 2
    assert reference.losses[-1] < 0.97 * reference.losses[0]


def test_ddp(reference: Any, runs: Any) -> None:
    assert_equal(runs.together("ddp"), reference)


@pytest.mark.parametrize("config", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_zero(reference: Any, runs: Any, zero: None, config: str) -> None:
    assert_equal(runs.together(config, engine=config), reference)


def test_checkpointing(reference: Any, runs: Any) -> None:
    changes = {"gradient_accumulation_steps": 2, "gradient_checkpointing": "true"}
    assert_equal(runs.alone("checkpointing", **changes), reference)


def test_zero_3_with_checkpointing(reference: Any, runs: Any, zero: None) -> None:
    run = runs.together("zero3 checkpointing", engine="zero3", gradient_checkpointing="true")
    assert_equal(run, reference)


def test_batches_that_are_not_weighted_by_their_label_tokens_do_differ(reference: Any, runs: Any) -> None:
    run = runs.together("unweighted", average_tokens_across_devices="false")
    assert min(run.apart(reference)) > 100 * TOLERANCE


def test_four_processes(runs: Any) -> None:
    changes = {"per_device_train_batch_size": 2}
    one = runs.alone("accumulating 4", gradient_accumulation_steps=4, **changes)
    assert_equal(runs.together("four", processes=4, **changes), one)


def test_two_processes_that_accumulate(runs: Any, zero: None) -> None:
    changes = {"per_device_train_batch_size": 2}
    one = runs.alone("accumulating 4", gradient_accumulation_steps=4, **changes)
    run = runs.together("2 x 2", engine="zero2", gradient_accumulation_steps=2, **changes)
    assert_equal(run, one)


def one_and_eight(runs: Any, blc_weight: float) -> tuple[Any, Any]:
    """A step of 8 rows at once, and of 8 times one row."""
    return tuple(
        runs.alone(
            f"{batch} rows, constraint {blc_weight}",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            blc_weight=blc_weight,
        )
        for batch in (8, 1)
    )


def test_without_the_constraint_the_batch_size_does_not_matter(runs: Any) -> None:
    assert_equal(*one_and_eight(runs, 0))


def test_with_it_the_batch_size_does_by_its_definition(runs: Any) -> None:
    losses, weights = one_and_eight(runs, 0.5)[0].apart(one_and_eight(runs, 0.5)[1])
    assert min(losses, weights) > 100 * TOLERANCE


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
