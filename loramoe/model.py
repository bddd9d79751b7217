"""The LoRAMoE tuner: puts the layers into a model, as PEFT's tuners do, and the constraint's hooks onto it."""

from __future__ import annotations

from typing import Any

from torch import nn

from loramoe.compat import TunerBase
from loramoe.config import LoraMoeConfig
from loramoe.hooks import unwatch, watch
from loramoe.layer import MERGE_REFUSED, LoraMoeLayer

_GATED = ("gate_proj", "up_proj", "down_proj")
_GPT2 = ("mlp.c_fc", "mlp.c_proj")
_NEOX = ("dense_h_to_4h", "dense_4h_to_h")

# The linears of the MLP, where the paper puts its experts; for each `model_type` of transformers.
MLP_LINEARS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "cohere"),
            *("cohere2", "olmo", "olmo2", "olmo3", "granite", "smollm3", "stablelm", "exaone4", "helium", "seed_oss"),
            *("hunyuan_v1_dense",),
        ),
        _GATED,
    ),
    **dict.fromkeys(("phi3", "glm", "glm4"), ("gate_up_proj", "down_proj")),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "starcoder2"), _GPT2),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon"), _NEOX),
    **dict.fromkeys(("phi", "opt"), ("fc1", "fc2")),
    "gptj": ("fc_in", "fc_out"),
}


class LoraMoeModel(TunerBase):
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
                    f"which linears are the MLP's is not known for model_type={model_type!r}. Name them with target_modules, "
                    'for example target_modules=["gate_proj", "up_proj", "down_proj"].'
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
            The base model, with the weights that it had.
        """
        unwatch(self.model)
        base: nn.Module = super().unload()
        return base
