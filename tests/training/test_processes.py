"""The end of a distributed process: what was asked for is done, and no thread of gloo aborts it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from loramoe.training.processes import leave

WORKER = """
    import atexit, sys, threading, time
    import torch, torch.distributed as dist
    from accelerate import PartialState
    from loramoe.training.processes import leave

    PartialState(cpu=True)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))  # holds the group after its end
    model(torch.ones(1, 2)).sum().backward()
    rank = dist.get_rank()
    folder = sys.argv[1]
    atexit.register(lambda: open(f"{folder}/atexit{rank}", "w").close())
    threading.Thread(target=lambda: (time.sleep(0.1), open(f"{folder}/thread{rank}", "w").close())).start()
    for _ in range(3000):
        dist.all_reduce(torch.ones(100), async_op=True)  # tensors that gloo's threads will be the last to hold
    PartialState().destroy_process_group()
    sys.stdout.write(f"rank {rank} is done")
    leave()
"""


def test_a_lone_process_goes_on():
    leave()


@pytest.mark.slow
def test_processes_end_well_while_gloo_is_at_work(tmp_path: Path):
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29583"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += ["worker.py", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        assert f"rank {rank} is done" in done.stdout
        assert (tmp_path / f"atexit{rank}").is_file()
        assert (tmp_path / f"thread{rank}").is_file()
