"""What every tuner had to write for itself before peft 0.18, which moved it into BaseTuner.

It belongs to `compat.py`, but a class needs its parent when it is made, so here peft is imported at once.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from packaging.version import Version
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn


class LegacyTuner(BaseTuner):  # type: ignore[misc]  # peft is not typed
    """BaseTuner as peft 0.18 completed it, for peft 0.17."""

    prefix: str
    tuner_layer_cls: type[BaseTunerLayer]

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        return check_target_module_exists(peft_config, key)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if self.prefix not in name:
                parameter.requires_grad = False

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not set yet: looking it up on itself would not end
                raise
            return getattr(self.model, name)

    def _enable_adapters(self, enabled: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
                module.enable_adapters(enabled)

    def enable_adapter_layers(self) -> None:
        """Enable all adapters."""
        self._enable_adapters(True)

    def disable_adapter_layers(self) -> None:
        """Disable all adapters."""
        self._enable_adapters(False)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Make one or several adapters the active ones.

        Args:
            adapter_name: Its name, or their names.
        """
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls):
                module.set_adapter(adapter_name)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter.

        Args:
            adapter_name: Its name.

        Raises:
            ValueError: If there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        del self.peft_config[adapter_name]
        left: list[str] | None = None
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls):
                module.delete_adapter(adapter_name)
                left = module.active_adapters[:] if left is None else left
        self.active_adapter = left or []
        self._delete_auxiliary_adapter(adapter_name, new_active_adapters=left)

    def unload(self) -> nn.Module:
        """Take all adapters off.

        Returns:
            The base model.
        """
        for name, module in list(self.model.named_modules()):
            parent_name, _, child_name = name.rpartition(".")
            if isinstance(module, self.tuner_layer_cls):
                setattr(self.model.get_submodule(parent_name), child_name, module.get_base_layer())
            elif isinstance(module, ModulesToSaveWrapper):
                setattr(
                    self.model.get_submodule(parent_name), child_name, module.modules_to_save[module.active_adapter]
                )
        base: nn.Module = self.model
        return base


TunerBase: Any = LegacyTuner if Version(importlib.metadata.version("peft")) < Version("0.18") else BaseTuner
