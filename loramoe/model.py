"""The LoRAMoE tuner: puts the layers into a model, as PEFT's tuners do, and the constraint's hooks onto it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from loramoe.compat import keep_gradients
from loramoe.config import LoraMoeConfig
from loramoe.hooks import unwatch, watch
from loramoe.layer import MERGE_REFUSED, LoraMoeLayer
from loramoe.legacy import TunerBase

MISCOUNTED = (
    "adapter_names should have a name for each sample of the batch; got {names} names, and {what}. Name as many "
    "adapters as there are samples; where a model hands its linears tokens without their samples, call it once for "
    "each adapter, after set_adapter(name)."
)
BASE = "__base__"  # in adapter_names: PEFT's word for a sample that takes no adapter
WEIGHTED_REFUSED = (
    "adapters of LoRAMoE cannot be averaged into one: each has a router of its own. Make them active together, with "
    "model.base_model.set_adapter([name, name]), and their additions are summed."
)

# The linears of the MLP, where the paper puts its experts, and the `model_type`s of transformers that name them so.
MLP_LINEARS: dict[str, tuple[str, ...]] = {
    model_type: linears
    for linears, model_types in {
        ("gate_proj", "up_proj", "down_proj"): (
            "cohere cohere2 cwm ernie4_5 exaone4 gemma gemma2 gemma3 gemma3_text gemma4_text granite helium "
            "hunyuan_v1_dense llama minicpm3 ministral ministral3 mistral olmo olmo2 olmo3 qwen2 qwen3 qwen3_5 "
            "qwen3_5_text seed_oss smollm3 stablelm vaultgemma"
        ),
        ("gate_up_proj", "down_proj"): "glm glm4 phi3",
        ("up_proj", "down_proj"): "apertus arcee mpt nemotron",
        ("w1", "w2", "w3"): "lfm2",
        ("mlp.c_fc", "mlp.c_proj"): "gpt2 gpt_bigcode gpt_neo starcoder2",
        ("dense_h_to_4h", "dense_4h_to_h"): "bloom falcon gpt_neox gpt_neox_japanese persimmon",
        ("fc1", "fc2"): "biogpt nanochat opt phi xglm",
        ("fc_in", "fc_out"): "codegen gptj",
    }.items()
    for model_type in model_types.split()
}


class LoraMoeModel(TunerBase):  # type: ignore[misc]  # peft is not typed
    """A model whose linears have LoRA experts and a router beside them.

    Made by `get_peft_model(model, LoraMoeConfig(…))`, or by PeftModel, inject_adapter_in_model and model.load_adapter.

    Args:
        model: The model to adapt.
        config: A LoraMoeConfig, or one by adapter name.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Create the adapter's weights on the meta device, to be loaded later.
    """

    prefix = "loramoe_"
    tuner_layer_cls = LoraMoeLayer
    target_module_mapping = MLP_LINEARS

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the adapted model: its module, not its `forward` as older peft does, which would skip the hooks."""
        return self.model(*args, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model, and have the constraint's hooks serve it.

        Args:
            model: The model to adapt.
            adapter_name: Name of the adapter, whose configuration is known already.
            *args: Passed on to PEFT.
            **kwargs: Passed on to PEFT.

        Raises:
            ValueError: If no gradient passes through the model's weights any more.
        """
        config = self.peft_config[adapter_name]
        if not config.inference_mode:
            keep_gradients(model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        watch(model, adapter_name, config)

    @staticmethod
    def _prepare_adapter_config(peft_config: LoraMoeConfig, model_config: dict[str, Any]) -> LoraMoeConfig:
        if peft_config.target_modules is None:
            model_type = model_config.get("model_type")
            if model_type not in MLP_LINEARS:
                raise ValueError(
                    f"which linears are the MLP's is not known for model_type={model_type!r}. Name them with "
                    'target_modules, for example target_modules=["gate_proj", "up_proj", "down_proj"].'
                )
            peft_config.target_modules = set(MLP_LINEARS[model_type])  # type: ignore[assignment]  # as PEFT does
        return peft_config

    def _create_and_replace(
        self,
        peft_config: LoraMoeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, LoraMoeLayer):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        layer = LoraMoeLayer(target, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is made active
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(MERGE_REFUSED)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Within, each sample of the batch takes the adapter that `adapter_names`, where it is given, has for it."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_mixed_batch(names, kwargs.get("task_types"))
        samples = _samples(*args, **kwargs)
        if samples not in (None, len(names)):
            raise ValueError(MISCOUNTED.format(names=len(names), what=f"a batch of {samples}"))
        hook = partial(_hand_names, names, samples is not None)
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, (LoraMoeLayer, ModulesToSaveWrapper))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_mixed_batch(self, names: Sequence[str], task_types: Any) -> None:
        if self.training:
            raise ValueError(
                "adapter_names mixes adapters in one batch, for evaluation alone. Call model.eval() first."
            )
        if task_types is not None:
            raise ValueError(
                "task_types are for the constraint of one adapter, and adapter_names mixes several in a batch. Leave "
                "one of them out."
            )
        unknown = sorted(set(names) - {*self.peft_config, BASE})
        if unknown:
            raise ValueError(
                f"adapter_names should name adapters of the model, {list(self.peft_config)}, or {BASE!r} for none; got "
                f"{unknown}. Load them first, or correct the names."
            )

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was the active one, the next takes its place.

        Args:
            adapter_name: Its name.

        Raises:
            ValueError: If there is no such adapter.
        """
        before = self.active_adapters
        super().delete_adapter(adapter_name)
        if self.active_adapters and self.active_adapters != before:
            self.set_adapter(self.active_adapters)  # its modules_to_save too, which peft 0.21 leaves as they were

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: an average of adapters is no adapter.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(WEIGHTED_REFUSED)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the mixture depends on the input.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(MERGE_REFUSED)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Refused: the mixture depends on the input. `unload` gives the base model back.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(MERGE_REFUSED)

    def unload(self) -> nn.Module:
        """Take every adapter and the constraint's hooks off, and give the base model back.

        Returns:
            The base model, with the weights that it had; of `modules_to_save`, as in all of PEFT, the trained copies.
        """
        unwatch(self.model)
        base: nn.Module = super().unload()
        return base


def _samples(*args: Any, **kwargs: Any) -> int | None:
    """Number of samples of a call, or None: where PEFT's own forward names its inputs, it does not hand them on."""
    named = (kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds"))
    return next((len(inputs) for inputs in (*args[:1], *named) if isinstance(inputs, Tensor)), None)


def _hand_names(
    names: Sequence[str], beams_may_be: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook that hands a module the adapter of each row of its input: of samples, or of their beams."""
    x: Tensor = next(iter((*args, *kwargs.values())))
    beams, rest = divmod(len(x), max(len(names), 1))
    of_tokens = isinstance(module, LoraMoeLayer) and x.dim() == 2  # [rows, D]: of what, cannot be told
    if rest or beams == 0 or (beams > 1 and (of_tokens or not beams_may_be)):
        raise ValueError(MISCOUNTED.format(names=len(names), what=f"a module that is given {len(x)} rows"))
    return args, {**kwargs, "adapter_names": [name for name in names for _ in range(beams)]}
