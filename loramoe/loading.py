"""A saved adapter, its base model and its tokenizer, loaded to be used rather than trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import loramoe  # noqa: F401  # registers the method with peft
from loramoe.compat.bitsandbytes import disable_bnb_cpu_packing
from loramoe.data.encode import tokenizer_hash
from loramoe.training.errors import ADAPTER_ERRORS, UsageError, as_usage_error
from loramoe.training.model_arguments import ModelArguments
from loramoe.tuner.hooks import detach_hooks


def load(model: str | None, adapter: str | None) -> tuple[Any, Any]:
    """Loads a base model with an adapter on it, ready to generate, on the GPU if there is one.

    Args:
        model: Base model. Default: the one that the adapter was trained on.
        adapter: Folder of the adapter. Default: the base model alone.

    Returns:
        The model and its tokenizer; the adapter's own tokenizer if one was saved with it.

    Raises:
        FileNotFoundError: If the adapter's folder does not exist, or no base model can be loaded; says why.
        ValueError: If neither is given.
    """
    from peft import PeftModel

    adapters = [] if adapter is None else [adapter]
    name = base_name(model, adapters)
    base = load_base(ModelArguments(model_name_or_path=name))
    tokenizer = load_tokenizer(name, adapters)
    return (base if adapter is None else PeftModel.from_pretrained(base, adapter)).to(base.device).eval(), tokenizer


def base_name(model: str | None, adapters: list[str]) -> str:
    """The base model that adapters are to be loaded on.

    Args:
        model: Base model. Default: the one that all of the adapters were trained on.
        adapters: Folders of adapters.

    Returns:
        A folder, or a name on the hub.

    Raises:
        FileNotFoundError: If an adapter's folder does not exist.
        ValueError: If there is neither a model nor an adapter, or adapters of different models without a model.
    """
    from peft import PeftConfig

    if model is None and not adapters:
        raise ValueError("there is no model to load. Set --adapter DIR, --model NAME, or both.")
    for adapter in adapters:
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise FileNotFoundError(f"no adapter at {adapter}: adapter_config.json is not there. Correct the path.")
    if model is not None:
        return model
    names = dict.fromkeys(str(PeftConfig.from_pretrained(adapter).base_model_name_or_path) for adapter in adapters)
    if len(names) > 1:
        raise ValueError(
            f"adapters were trained on different base models, {list(names)}. Compare those of one base, or say with "
            "--model which to put all of them on."
        )
    return next(iter(names))


def load_tokenizer(model: str, adapters: list[str]) -> Any:
    """The tokenizer that was saved with adapters, or else that of the base model.

    Args:
        model: The base model.
        adapters: Folders of adapters.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: If it cannot be loaded; says why.
        ValueError: If adapters bring different tokenizers.
    """
    own = [adapter for adapter in adapters if (Path(adapter) / "tokenizer_config.json").is_file()]
    tokenizers = [_tokenizer(name) for name in own or [model]]
    if len(set(map(tokenizer_hash, tokenizers))) > 1:
        raise ValueError(
            f"the adapters {own} bring different tokenizers, so that they would not read the same tokens. Compare them "
            "in runs of their own."
        )
    return tokenizers[0]


def _tokenizer(name: str) -> Any:
    with _told("tokenizer", name):
        return AutoTokenizer.from_pretrained(name)


def load_base(arguments: ModelArguments, device: str | None = None) -> Any:
    """Loads a base model for use.

    Args:
        arguments: Its name, its dtype and whether to load it in 4 or 8 bits, as for `train.py`.
        device: Where to put it. Default: the GPU if there is one.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If no model can be loaded under the name; says why.
        UsageError: If the device cannot be used.
    """
    from loramoe.training.model import quantisation

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # A torch without CUDA asserts; all other devices that are not there are RuntimeErrors.
    with as_usage_error(RuntimeError, AssertionError, about=f"set --device to one that is here, got {device!r}:"):
        torch.empty(0, device=device)
    dtype = arguments.torch_dtype
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if arguments.load_in_kbits in (4, 8):  # bitsandbytes quantises where the weights arrive, and moves them no more
        options |= {"quantization_config": BitsAndBytesConfig(**quantisation(arguments)), "device_map": {"": device}}
    with _told("base model", arguments.model_name_or_path) as name:
        base = AutoModelForCausalLM.from_pretrained(name, **options)
    disable_bnb_cpu_packing(
        base
    )  # packed, a 4-bit linear on a CPU could have in-features that are multiples of 64 alone
    return (base if "device_map" in options else base.to(device)).eval()


@contextmanager
def _told(what: str, name: str) -> Iterator[str]:
    try:
        yield name
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"no {what} could be loaded from {name!r} (looked in {Path.cwd()} and on the hub). "
            f"Set --model to where it is, or mend what is wrong there: {error}"
        ) from error


@contextmanager
def attached(base: Any, adapter: str | None) -> Iterator[Any]:
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
    with _given_back(base, saved):
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
def _given_back(base: Any, saved: Collection[str]) -> Iterator[None]:
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
