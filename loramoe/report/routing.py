"""What the routers did with every token of a data set: sums that one pass over its rows gathers.

The memory that this needs does not grow with the number of rows. Beside the model and one batch there are, in float64,

    T · L · E     gate weight by task type, linear and expert
    K · V · E     gate weight by token, of each band of layers

of which the second is the larger: 3 · 128,000 · 8 · 8 bytes = 25 MB for a vocabulary of 128,000 and 8 experts. Padding
never counts, and every real token counts once, those of the prompts too.

Shape letters: T task types, L adapted linears, E experts, K bands of layers (thirds of the depth), V vocabulary, P real
tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from loramoe.balance.constraint import rows_as_samples
from loramoe.export.adapter import ActiveAdapter
from loramoe.report.layers import Layer, bands_of, layers_of
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.layer import LoraMoeLayer

NEEDED = ("input_ids", "task_types")


@dataclass(frozen=True)
class Routing:
    """The sums, on the CPU.

    Attributes:
        Q_TLE: Importance: gate weight that each expert got from the tokens of each task type, [T, L, E] float64.
        entropy_TL: Entropy of the gates of each token in nats, summed over the tokens, [T, L] float64.
        tokens_T: Number of tokens of each task type, [T] int64.
        Q_KVE: Gate weight by token of the vocabulary, mean over the linears of each band, [K, V, E] float64.
        count_V: How often each token occurred, [V] int64.
        rows: Number of rows.
        task_types: The T task types, ascending.
        expert_types: Type of each expert.
        linears: Names of the L adapted linears.
        bands: The K bands.
    """

    Q_TLE: Tensor
    entropy_TL: Tensor
    tokens_T: Tensor
    Q_KVE: Tensor
    count_V: Tensor
    rows: int
    task_types: tuple[int, ...]
    expert_types: tuple[int, ...]
    linears: tuple[str, ...]
    bands: tuple[Layer, ...]


class RoutingMeter:
    """Gathers the gates of many batches. Sums stay on the device: adding a batch reads nothing back but its task types.

    Args:
        linears: Names of the L adapted linears, in the order of the model.
        expert_types: Type of each expert.
        vocabulary: Number of token ids.
        device: Where the sums are kept.
    """

    def __init__(
        self, linears: Sequence[str], expert_types: Sequence[int], vocabulary: int, device: torch.device | str = "cpu"
    ) -> None:
        self._linears, self._expert_types = tuple(linears), tuple(expert_types)
        self._bands = bands_of(layers_of(linears))
        self._sums: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # task type -> Q [L, E], entropy [L], tokens []
        shape = (len(self._bands), vocabulary, len(self._expert_types))
        self._Q_KVE = torch.zeros(shape, dtype=torch.float64, device=device)
        self._count_V = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self._rows = 0

    def add(self, gates: Sequence[Tensor], ids_P: Tensor, types_P: Tensor, task_types: Iterable[int]) -> None:
        """Adds a batch.

        Args:
            gates: Gates of its P real tokens, [P, E] for each of the L linears.
            ids_P: Their ids, [P] int64.
            types_P: Task type of the row of each, [P] int64.
            task_types: Task type of each row of the batch.
        """
        device = self._Q_KVE.device
        gates_LPE = torch.stack([gates_PE.to(device, torch.float64) for gates_PE in gates])
        entropy_LP = torch.special.entr(gates_LPE).sum(dim=-1)  # −g log g, 0 where g is 0
        task_types = list(task_types)
        for task_type in sorted(set(task_types)):
            is_type_P = (types_P == task_type).to(gates_LPE)
            new = (is_type_P @ gates_LPE, entropy_LP @ is_type_P, is_type_P.sum())
            old = self._sums.get(task_type)
            self._sums[task_type] = new if old is None else (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        for k, band in enumerate(self._bands):
            self._Q_KVE[k].index_add_(0, ids_P, gates_LPE[list(band.linears)].mean(dim=0))
        self._count_V += torch.bincount(ids_P, minlength=len(self._count_V))
        self._rows += len(task_types)

    def result(self) -> Routing:
        """The sums of everything added so far.

        Raises:
            ValueError: If there was no token, or gates are not finite.
        """
        task_types = tuple(sorted(kind for kind, (_, _, tokens) in self._sums.items() if tokens > 0))
        if not task_types:
            raise ValueError("there is no token to report on: the rows are empty. Give at least one row.")
        Q, entropy, tokens = zip(*(self._sums[task_type] for task_type in task_types), strict=True)
        Q_TLE = torch.stack(Q).cpu()
        if not Q_TLE.isfinite().all():
            raise ValueError("the adapter has gates that are not finite: it is damaged. Train or copy it again.")
        return Routing(
            Q_TLE=Q_TLE,
            entropy_TL=torch.stack(entropy).cpu(),
            tokens_T=torch.stack(tokens).long().cpu(),
            Q_KVE=self._Q_KVE.cpu(),
            count_V=self._count_V.cpu(),
            rows=self._rows,
            task_types=task_types,
            expert_types=self._expert_types,
            linears=self._linears,
            bands=self._bands,
        )


def observe(model: Any, batches: Iterable[Mapping[str, Tensor]], *, progress: bool = True) -> Routing:
    """Runs a model once over rows, and gathers what its routers did. The model is left as it was.

    Args:
        model: A PeftModel whose active adapter is of LoRAMoE; of several, the first is looked at.
        batches: Batches with `input_ids` [B, S], `task_types` [B] and, unless every token is real, `attention_mask`
            [B, S]. A DataLoader with `loramoe.data.SftCollator` gives them.
        progress: Show a progress bar.

    Returns:
        The sums.

    Raises:
        ValueError: If no adapter is active, or it has no experts to tell apart, a batch lacks something, a linear saw
            other tokens than the batch has, there were none at all, or gates are not finite.
    """
    adapter = routed(model)
    base = model.get_base_model()
    trunk = _trunk(base, adapter)
    vocabulary = base.config.get_text_config().vocab_size
    meter = RoutingMeter(tuple(adapter.layers), adapter.config.types_of_experts, vocabulary, model.device)
    with _in_evaluation(model), torch.no_grad():  # in inference mode ZeRO-3 would gather weights that no one can train
        for batch in tqdm(batches, desc="observing the experts", disable=not progress, leave=False):
            _check_batch(batch)
            ids_BS, task_types = batch["input_ids"].to(model.device), batch["task_types"]
            real_BS = _real_tokens(batch).to(model.device)
            places_P = real_BS.flatten().nonzero().squeeze(-1)  # once: an accelerator has to be waited for
            with _gates_kept(adapter) as kept:
                trunk(input_ids=ids_BS, attention_mask=real_BS.long(), use_cache=False)
                gates = [_gates_of(kept, linear, real_BS, places_P) for linear in adapter.layers]
            types_BS = task_types.to(model.device)[:, None].expand_as(ids_BS)
            ids_P, types_P = (each_BS.flatten().index_select(0, places_P) for each_BS in (ids_BS, types_BS))
            meter.add(gates, ids_P, types_P, task_types.tolist())
    return meter.result()


def routed(model: Any) -> ActiveAdapter:
    """Finds the adapter whose routers are to be observed.

    Args:
        model: A model with adapters.

    Returns:
        The first active adapter.

    Raises:
        ValueError: If the model has none, none is active, or it is not of LoRAMoE, or has a single expert.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"the experts of a PeftModel can be observed; got {type(model).__name__}. Load the adapter with "
            "PeftModel.from_pretrained(base, adapter)."
        )
    name = next(iter(model.active_adapters), None)
    if name is None:
        raise ValueError(
            f"no adapter is active; the model has {sorted(model.peft_config)}. Choose one with model.set_adapter(name)."
        )
    config = model.peft_config[name]
    if not isinstance(config, LoraMoeConfig):
        raise ValueError(
            f"adapter {name!r} is of type {config.peft_type.value}, which has no experts. Give one of LoRAMoE."
        )
    if config.lora_nums < 2:
        raise ValueError(
            f"adapter {name!r} has lora_nums={config.lora_nums}: its one expert gets every token. Give one with "
            "lora_nums=2 or more."
        )
    modules = model.get_base_model().named_modules()
    layers = {linear: module for linear, module in modules if isinstance(module, LoraMoeLayer)}
    return ActiveAdapter(
        model, name, config, {linear: each for linear, each in layers.items() if name in each.loramoe_experts}
    )


def _trunk(base: nn.Module, adapter: ActiveAdapter) -> nn.Module:
    """The model without its head, whose logits [B, S, V] nobody needs here, unless there is an adapted linear in it."""
    trunk: nn.Module = base.base_model  # type: ignore[assignment]  # so transformers calls it
    return trunk if set(adapter.layers.values()) <= set(trunk.modules()) else base


def _check_batch(batch: Mapping[str, Tensor]) -> None:
    missing = [name for name in NEEDED if name not in batch]
    if missing:
        raise ValueError(
            f"a batch must hold {' and '.join(NEEDED)}; got {sorted(batch)}. Use loramoe.data.SftCollator on rows that "
            "have a task type."
        )


def _gates_of(kept: Mapping[str, Tensor], linear: str, real_BS: Tensor, places_P: Tensor) -> Tensor:
    """Gates [P, E] of the P real tokens of a batch [B, S]; some architectures flatten that into one dimension."""
    gates, samples = kept.get(linear), rows_as_samples(real_BS)
    if gates is None or not samples.covers(gates):
        raise ValueError(
            f"{samples.token_mismatch_message(linear, gates)}. Adapters on layers that see each token once, row by "
            "row, can be reported on, and no others."
        )
    return gates.flatten(0, -2).index_select(0, places_P.to(gates.device))


@contextmanager
def _in_evaluation(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()


@contextmanager
def _gates_kept(adapter: ActiveAdapter) -> Iterator[dict[str, Tensor]]:
    kept: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda module, args, output: kept.__setitem__(name, output[1])

    modules = {name: layer.loramoe_experts[adapter.name] for name, layer in adapter.layers.items()}
    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
