"""A saved adapter, its base model and its tokenizer, loaded to be used rather than trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import loramoe  # noqa: F401  # registers the method with peft
from loramoe.training.errors import as_usage_error
from loramoe.training.model_arguments import ModelArguments


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
        model: Base model. Default: the one that the first adapter was trained on.
        adapters: Folders of adapters.

    Returns:
        A folder, or a name on the hub.

    Raises:
        FileNotFoundError: If an adapter's folder does not exist.
        ValueError: If there is neither a model nor an adapter.
    """
    from peft import PeftConfig

    if model is None and not adapters:
        raise ValueError("there is no model to load. Set --adapter DIR, --model NAME, or both.")
    for adapter in adapters:
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise FileNotFoundError(f"no adapter at {adapter}: adapter_config.json is not there. Correct the path.")
    return model or str(PeftConfig.from_pretrained(adapters[0]).base_model_name_or_path)


def load_tokenizer(model: str, adapters: list[str]) -> Any:
    """The tokenizer of the first adapter that one was saved with, or else of the base model.

    Args:
        model: The base model.
        adapters: Folders of adapters.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: If it cannot be loaded; says why.
    """
    own = [adapter for adapter in adapters if (Path(adapter) / "tokenizer_config.json").is_file()]
    with _told("tokenizer", [*own, model][0]) as name:
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
    """
    from loramoe.training.model import quantisation

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = arguments.torch_dtype
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if arguments.load_in_kbits in (4, 8):  # bitsandbytes quantises where the weights arrive, and moves them no more
        options |= {"quantization_config": BitsAndBytesConfig(**quantisation(arguments)), "device_map": {"": device}}
    with _told("base model", arguments.model_name_or_path) as name:
        base = AutoModelForCausalLM.from_pretrained(name, **options)
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
        The model with the adapter, in evaluation mode; afterwards the base model is what it was.

    Raises:
        UsageError: If the adapter is damaged, or was trained on another base model.
    """
    from peft import PeftModel

    if adapter is None:
        yield base
        return
    with as_usage_error(
        ValueError, OSError, RuntimeError, about=f"the adapter {adapter} cannot be loaded on this base:"
    ):
        model = PeftModel.from_pretrained(base, adapter).to(base.device).eval()
    try:
        yield model
    finally:
        model.unload()
        vars(base).pop("peft_config", None)  # some versions of peft leave it behind, and warn of it the next time
