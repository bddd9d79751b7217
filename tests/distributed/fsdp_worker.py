"""One of two processes that train with raw FSDP2 on a CPU, beside a model of which nothing is sharded.

    torchrun --nproc_per_node 2 fsdp_worker.py BASE OUT CHECKPOINTING DTYPE

Both models see the same batches; after every step their losses and gradients are compared, and the largest deviations
written to OUT with the adapter, saved whole, and what the sharded model made of a text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from peft import PeftModel, get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from loramoe import LoraMoeConfig
from loramoe.training.distributed import exit_process, whole_adapter
from loramoe.tuner.layer import Experts


def build(base: str, checkpointing: bool, dtype: torch.dtype) -> PeftModel:
    torch.manual_seed(0)
    config = LoraMoeConfig(r=4, lora_nums=4, lora_dropout=0, blc_weight=0.5, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), config)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def shard(model: PeftModel) -> None:
    """By PEFT's own policy: each leaf with trained weights, each decoder layer, and then what is left."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = fsdp_auto_wrap_policy(model)
    modules = [module for module in model.modules() if policy(module=module, recurse=False, nonwrapped_numel=0)]
    for module in [*reversed(modules), model]:  # from the leaves upwards
        fully_shard(module, mesh=mesh)
    assert all(isinstance(module, FSDPModule) for module in model.modules() if isinstance(module, Experts))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def batches(step: int) -> list[dict[str, Tensor]]:
    """One for each process: 3 samples of unequal length, of both task types, with unequally many labels."""
    draw = torch.Generator().manual_seed(step)
    made = []
    for rank in range(2):
        ids = torch.randint(3, 60, (3, 9 + 4 * rank), generator=draw)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : 2 + 2 * rank] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels, "task_types": torch.tensor([0, 1, 1])})
    return made


def trained(model: PeftModel) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def main() -> None:
    base, out, checkpointing, dtype = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "true", sys.argv[4]
    PartialState(cpu=True)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    whole, sharded = (build(base, checkpointing, getattr(torch, dtype)) for _ in range(2))
    shard(sharded)
    optimizers = [torch.optim.AdamW(trained(model).values(), lr=1e-2, foreach=False) for model in (whole, sharded)]
    deviations: dict[str, list[float]] = {"loss": [], "gradient": []}
    losses = []
    for step in range(4):
        both = batches(step)
        items = sum((batch["labels"][:, 1:] != -100).sum() for batch in both)
        expected = sum(whole(**batch, num_items_in_batch=items).loss for batch in both)
        expected.backward()
        part = sharded(**both[rank], num_items_in_batch=items).loss  # its share of the step's loss
        (world_size * part).backward()  # FSDP averages gradients over the processes
        dist.all_reduce(total := part.detach().clone())
        losses.append(float(total))
        deviations["loss"].append(apart(total, expected.detach()))
        theirs = trained(whole)
        # B is zero at first, and so are the gradients of A and of the router but for the constraint's.
        deviations["gradient"] += [
            apart(parameter.grad.full_tensor(), theirs[name].grad)
            for name, parameter in trained(sharded).items()
            if theirs[name].grad.norm() > 0
        ]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    adapter = whole_adapter(sharded, keep=rank == 0)
    sharded.eval()
    with torch.no_grad():
        logits = sharded(input_ids=torch.arange(3, 23).reshape(2, 10)).logits
    if rank == 0:
        sharded.save_pretrained(out / "adapter", state_dict=adapter)
        torch.save(logits, out / "logits.pt")
        numbers = {name: max(values) for name, values in deviations.items()}
        (out / "numbers.json").write_text(json.dumps({**numbers, "losses": losses, "tensors": len(adapter)}))
    dist.barrier()
    exit_process()


if __name__ == "__main__":
    main()
