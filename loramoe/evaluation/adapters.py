"""Adapters of any of PEFT's methods, taking turns on one base model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from loramoe.tuner.hooks import detach_hooks
from loramoe.utils import ADAPTER_ERRORS, UsageError, as_usage_error


@contextmanager
def load_adapter_on(base: Any, adapter: str | None) -> Iterator[Any]:
    """Puts an adapter on a base model for a while, so that adapters of any of PEFT's methods can take turns on one.

    Args:
        base: The base model.
        adapter: Folder of the adapter; None leaves the base model alone.

    Yields:
        The model with the adapter, in evaluation mode; afterwards the base model is what it was, bit for bit.

    Raises:
        UsageError: If the adapter is damaged, was trained on another base model, or is one of virtual tokens.
    """
    from peft import PeftModel, load_peft_weights

    if adapter is None:
        yield base
        return
    check_kind(adapter)
    about = f"the adapter {adapter} cannot be loaded on this base:"
    with as_usage_error(*ADAPTER_ERRORS, about=about):
        saved = load_peft_weights(adapter, device="cpu")
    with _restoring(base, saved):
        with as_usage_error(*ADAPTER_ERRORS, about=about):
            model = PeftModel.from_pretrained(base, adapter).to(base.device).eval()
        yield model


def check_kind(adapter: str) -> None:
    """Refuses adapters of virtual tokens: those would stand before the prompt, where its cache is read and continued.

    Args:
        adapter: Folder of the adapter.

    Raises:
        UsageError: If PEFT counts its type as prompt learning.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning:
        raise UsageError(
            f"the adapter {adapter} is of type {config.peft_type.value}, whose virtual tokens would make likelihoods "
            "wrong here. Leave it out; all types that adapt the model's own modules can be evaluated."
        )


@contextmanager
def _restoring(base: Any, saved: Collection[str]) -> Iterator[None]:
    """Puts back what PEFT replaces or overwrites in a base model, even if it fails half-way.

    PEFT's own `unload` would leave trained biases and the copies of `modules_to_save` behind.
    """
    modules = dict(base.named_modules(remove_duplicate=False))
    overwritten = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in saved}
    parameters = dict(base.named_parameters(remove_duplicate=False))
    values = {name: parameters[name].detach().clone() for name in overwritten & parameters.keys()}
    try:
        yield
    finally:
        detach_hooks(base)
        for name, module in modules.items():
            if base.get_submodule(name) is not module:
                base.set_submodule(name, module)
        for name, value in values.items():
            parameters[name].data.copy_(value)
        vars(base).pop("peft_config", None)  # it would be warned of the next time
