"""The one collector of routing statistics, behind the training log, the report and the model card.

It adds up what the hooks of the constraint return for each forward pass. Every real token has the same weight, so the
result does not depend on how samples were batched; padding never counts. The memory does not grow with the number of
batches, and adding a batch does not wait for the accelerator.

Shape letters: T task types, L adapted linear layers, E experts, G groups (experts of one type), M samples of a batch.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from loramoe.tuner.hooks import BalanceStats, last_balance
from loramoe.tuner.layer import LoraMoeLayer

Array = NDArray[np.float64]
PARTS_PREFIX: Final = "routing/"


@dataclass(frozen=True)
class RoutingStats:
    """What the routers did with a set of samples."""

    gate_TLE: Array  # mean gate over the real tokens of each task type; sums to 1 over the experts
    entropy_TL: Array | None  # mean over the tokens of −Σ_e g_e log g_e / log E; None for training steps
    constraint_L: Array  # the unweighted constraint of each layer, mean over the batches
    tokens_T: Array  # number of real tokens
    samples_T: Array  # number of samples
    task_types: tuple[int, ...]  # those that occurred, ascending
    expert_types: tuple[int, ...]
    layers: tuple[str, ...]  # names of the adapted linear layers

    @property
    def groups(self) -> tuple[int, ...]:
        """The G types that experts have, ascending."""
        return tuple(sorted(set(self.expert_types)))

    @property
    def of_group_EG(self) -> Array:
        """1 where an expert belongs to a group, else 0."""
        return np.equal.outer(self.expert_types, self.groups).astype(np.float64)

    @property
    def share_TLG(self) -> Array:
        """Share of the gate weight of each group of experts; sums to 1 over the groups."""
        return np.asarray(self.gate_TLE @ self.of_group_EG)

    @property
    def share_TG(self) -> Array:
        """The same, mean over the layers."""
        return np.asarray(self.share_TLG.mean(axis=1))

    @property
    def load_imbalance_L(self) -> Array:
        """Coefficient of variation √var / mean (unbiased) of the experts' gate weight over all tokens: 0 to √E."""
        load_LE = np.einsum("t,tle->le", self.tokens_T, self.gate_TLE)
        return np.asarray(load_LE.std(axis=-1, ddof=1) / load_LE.mean(axis=-1))

    @property
    def decoder_layers(self) -> dict[str, list[int]]:
        """Positions of linear layers by the index of their decoder layer, or by their own name outside of any."""
        found: dict[str, list[int]] = {}
        for position, name in enumerate(self.layers):
            index = re.search(r"\b\d+\b", name)
            found.setdefault(index[0] if index else name, []).append(position)
        return found

    def by_decoder_layer(self, values: Array, axis: int = 1) -> Array:
        """The mean over the linear layers of each decoder layer, in place of the axis of the linear layers."""
        return np.stack([values.take(chosen, axis).mean(axis) for chosen in self.decoder_layers.values()], axis)


class RoutingCollector:
    """Adds up the statistics of many forward passes of one adapter."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._names: tuple[tuple[int, ...], tuple[str, ...]] = ((), ())  # types of the experts, names of the layers

    def add(self, balance: BalanceStats | None) -> None:
        """Adds what `loramoe.last_balance(model)` returned after a forward pass; a single expert adds nothing."""
        if balance is None or len(balance.expert_types) < 2:
            return
        tokens_M = balance.tokens_M
        dtype = torch.float32 if tokens_M.device.type == "mps" else torch.float64  # MPS has no float64
        # Task types are types of experts; finding out which of them occur would wait for the device.
        types_T = torch.tensor(sorted(set(balance.expert_types)), device=tokens_M.device)
        is_type_TM = ((types_T[:, None] == balance.task_types_M) & (tokens_M > 0)).to(dtype)
        tokens_TM = is_type_TM * tokens_M
        weight_TM = is_type_TM if balance.kind == "sum" else tokens_TM
        new = {
            "gate_TLE": torch.einsum("tm,lme->tle", weight_TM, balance.importance_LME.to(dtype)),
            "constraint_L": balance.constraint_L.to(dtype),
            "tokens_T": tokens_TM.sum(dim=1),
            "samples_T": is_type_TM.sum(dim=1),
            "batches": tokens_TM.new_ones(()),
        }
        if balance.entropy_LM is not None:
            new["entropy_TL"] = tokens_TM @ balance.entropy_LM.to(dtype).T
        self._add((balance.expert_types, balance.layers), new)

    def _add(self, names: tuple[tuple[int, ...], tuple[str, ...]], new: Mapping[str, Tensor]) -> None:
        self._names = names
        self._sums |= {name: self._sums.get(name, 0) + value for name, value in new.items()}

    @staticmethod
    def merge(collectors: Iterable[RoutingCollector]) -> RoutingCollector:
        """Merges collectors, such as those of several processes, into a new one on the CPU."""
        merged = RoutingCollector()
        for each in collectors:
            if each._sums:
                merged._add(each._names, {name: value.cpu().double() for name, value in each._sums.items()})
        return merged

    def result(self) -> RoutingStats | None:
        """The statistics of everything added so far; None if no batch had a real token."""
        sums = {name: value.cpu().double().numpy() for name, value in self._sums.items()}
        if not sums or not sums["tokens_T"].any():
            return None
        expert_types, layers = self._names
        occurs_T = sums["tokens_T"] > 0
        tokens_T, entropy_TL = sums["tokens_T"][occurs_T], sums.get("entropy_TL")
        if entropy_TL is not None:
            entropy_TL = entropy_TL[occurs_T] / tokens_T[:, None] / math.log(len(expert_types))
        return RoutingStats(
            gate_TLE=sums["gate_TLE"][occurs_T] / tokens_T[:, None, None],
            entropy_TL=entropy_TL,
            constraint_L=sums["constraint_L"] / sums["batches"],
            tokens_T=tokens_T,
            samples_T=sums["samples_T"][occurs_T],
            task_types=tuple(np.array(sorted(set(expert_types)))[occurs_T].tolist()),
            expert_types=expert_types,
            layers=layers,
        )


@torch.no_grad()
def collect_routing(model: Any, batches: Iterable[Mapping[str, Any]]) -> RoutingStats:
    """Runs a model once over samples and collects what its routers did. The model is left as it was.

    Args:
        model: A PeftModel; of several active adapters, the first is observed.
        batches: Batches of `loramoe.data.SftCollator`, or others with `task_types`.

    Raises:
        ValueError: If the active adapter has a single expert, a batch lacks task types, or there is no token.
    """
    config, base = model.active_peft_config, model.get_base_model()
    if getattr(config, "lora_nums", 1) < 2:
        kind = config.peft_type.value
        raise ValueError(f"routing needs an adapter of several experts; got {kind} of a single one. Give a LoRAMoE.")
    options: dict[str, Any] = {"use_cache": False}
    has_option = "logits_to_keep" in inspect.signature(base.forward).parameters
    if has_option and not isinstance(base.get_output_embeddings(), LoraMoeLayer):
        options["logits_to_keep"] = 1  # nobody reads the logits [B, S, V]
    collector, training = RoutingCollector(), model.training
    model.eval()
    try:
        for batch in tqdm(batches, desc="routing", disable=None, leave=False):
            if "task_types" not in batch:
                raise ValueError(f"a batch must hold task_types; got {sorted(batch)}. Use loramoe.data.SftCollator.")
            inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            model(**inputs, **options)
            collector.add(last_balance(model))
    finally:
        model.train(training)
    stats = collector.result()
    if stats is None:
        raise ValueError("there is no token to collect routing of: the samples are empty. Give at least one sample.")
    return stats


def log_values(stats: RoutingStats) -> dict[str, float]:
    """What a training logs: `blc`, `cov`, `share/type1/group0`, `entropy`; and of parts, as `routing/blc/early`."""
    values = _values(stats, range(len(stats.layers)))
    for part, layers in split_parts(stats).items():
        values |= {f"{PARTS_PREFIX}{name}/{part}": value for name, value in _values(stats, layers).items()}
    return values


def _values(stats: RoutingStats, layers: Sequence[int]) -> dict[str, float]:
    values = {"blc": stats.constraint_L[layers].sum(), "cov": stats.load_imbalance_L[layers].mean()}
    for task_type, share_G in zip(stats.task_types, stats.share_TLG[:, layers].mean(axis=1), strict=True):
        values |= {f"share/type{task_type}/group{g}": share for g, share in zip(stats.groups, share_G, strict=True)}
    if stats.entropy_TL is not None:
        values["entropy"] = np.average(stats.entropy_TL[:, layers].mean(axis=1), weights=stats.tokens_T)
    return {name: float(value) for name, value in values.items()}


def split_parts(stats: RoutingStats) -> dict[str, Sequence[int]]:
    """Positions of linear layers by thirds of the depth (in whole decoder layers) and by kind, such as `down_proj`.

    A model of fewer than three decoder layers has no thirds, and one kind alone is no part.
    """
    parts: dict[str, Sequence[int]] = {}
    decoder_layers = list(stats.decoder_layers.values())
    if len(decoder_layers) >= 3:
        thirds = np.array_split(range(len(decoder_layers)), 3)
        for depth, third in zip(("early", "middle", "late"), thirds, strict=True):
            parts[depth] = [position for index in third for position in decoder_layers[index]]
    kinds = np.array([name.rpartition(".")[2] for name in stats.layers])
    if len(set(kinds)) > 1:
        parts |= {str(kind): np.flatnonzero(kinds == kind).tolist() for kind in dict.fromkeys(kinds)}
    return parts
