"""The LoRAMoE tuner: puts the layers into a model, as PEFT's tuners do, and the constraint's hooks onto it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from loramoe.config import LoraMoeConfig
from loramoe.hooks import unwatch, watch
from loramoe.layer import MERGE_REFUSED, LoraMoeLayer
from loramoe.legacy import TunerBase

MIXED_BATCH_REFUSED = (
    "adapter_names mixes adapters within one batch, which LoRAMoE does not do; got adapter_names={names}. Call the "
    "model once for each adapter, after set_adapter(name)."
)
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
        """
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        watch(model, adapter_name, self.peft_config[adapter_name])

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
        """Where PEFT would tell the layers which sample takes which adapter; without it, adapter_names are dropped."""
        if kwargs.get("adapter_names") is not None:
            raise NotImplementedError(MIXED_BATCH_REFUSED.format(names=kwargs["adapter_names"]))
        yield

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
