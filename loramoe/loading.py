"""Base models, tokenizers and adapters, loaded as the flags of a command say; an adapter is a folder or a hub id."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.hf_argparser import HfArg

import loramoe  # noqa: F401  # registers the method with peft
from loramoe.compat.bitsandbytes import disable_bnb_cpu_packing
from loramoe.data.templates import tokenizer_hash
from loramoe.utils import ADAPTER_ERRORS, UsageError, as_usage_error, require

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class BaseArguments:
    """The flags of a base model, alike for training and for use."""

    base_model: str = HfArg(
        help="Base model: a folder, or a name on the Hugging Face hub.", aliases=["--model_name_or_path", "--model"]
    )
    tokenizer_name_or_path: str | None = HfArg(default=None, help="Tokenizer. Default: the base model's.")
    dtype: Dtype = HfArg(  # noqa: RUF009  # it makes a field
        default="auto", help="Dtype of the base model; auto: as it was saved.", aliases=["--torch_dtype"]
    )
    load_in_kbits: int = HfArg(
        default=16, help="Load the base model in 4 or 8 bits (needs bitsandbytes); 16: in dtype."
    )
    double_quant: bool = HfArg(default=True, help="4 bits: quantise the quantisation constants too.")
    quant_type: Literal["nf4", "fp4"] = HfArg(default="nf4", help="4 bits: number format.")
    attn_implementation: str | None = HfArg(
        default=None, help="Attention: sdpa, eager, flash_attention_2, … Default: transformers' choice."
    )
    flash_attn: bool = HfArg(default=False, help="Short for --attn_implementation flash_attention_2.")
    revision: str | None = HfArg(default=None, help="Revision of the base model on the hub.")
    trust_remote_code: bool = HfArg(default=False, help="Run model code that the hub's repository brings.")

    def __post_init__(self) -> None:
        if self.load_in_kbits not in (4, 8, 16):
            raise ValueError(f"load_in_kbits must be 4, 8 or 16; got load_in_kbits={self.load_in_kbits}. Choose one.")
        if self.load_in_kbits != 16:
            require("bitsandbytes", f"load_in_kbits={self.load_in_kbits}")
        if self.flash_attn:
            self.attn_implementation = "flash_attention_2"
        if self.attn_implementation == "flash_attention_2":
            require("flash_attn", "attn_implementation=flash_attention_2", package="flash-attn --no-build-isolation")
            if not torch.cuda.is_available():
                raise ValueError("flash_attention_2 needs a GPU, and PyTorch finds none. Leave it out to use sdpa.")

    @property
    def hub_options(self) -> dict[str, Any]:
        """What every `from_pretrained` of this model takes."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def model_options(self, compute_dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Arguments of `AutoModelForCausalLM.from_pretrained`."""
        options = {**self.hub_options, "dtype": self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)}
        if self.attn_implementation:
            options["attn_implementation"] = self.attn_implementation
        if self.load_in_kbits == 8:
            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        if self.load_in_kbits == 4:
            own = None if self.dtype == "auto" else getattr(torch, self.dtype)
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_compute_dtype=own or compute_dtype or load_config(self).get_text_config().dtype,
                bnb_4bit_use_double_quant=self.double_quant,
                bnb_4bit_quant_type=self.quant_type,
            )
        return options


def load_config(arguments: BaseArguments) -> Any:
    """The configuration of a base model."""
    with as_usage_error(OSError, ValueError, about=f"base_model={arguments.base_model} cannot be loaded:"):
        return AutoConfig.from_pretrained(arguments.base_model, **arguments.hub_options)


def positions(config: Any) -> int | None:
    """The most tokens that a model takes; None if it has no limit."""
    return cast("int | None", getattr(config.get_text_config(), "max_position_embeddings", None))


def check_positions(config: Any, length: int, what: str) -> None:
    """Refuses texts that are longer than the positions of a model."""
    most = positions(config)
    if most is not None and length > most:
        raise UsageError(f"the base model knows {most} positions, and {what} has {length} tokens. Shorten it.")


def add_model_flags(parser: argparse.ArgumentParser, adapter: bool = True) -> None:
    """Adds the flags of a model and its adapter, alike in all commands."""
    add = parser.add_argument
    if adapter:
        add("--adapter", help="adapter: a folder, or a name on the hub; default: the base model alone")
    add("--base_model", "--model", "--model_name_or_path", help="default: the one that the adapter was trained on")
    add("--device", help="such as cuda or cpu; default: the accelerator if there is one")
    add("--dtype", "--torch_dtype", choices=get_args(Dtype), default="auto", help="auto: as it was saved")
    add("--load_in_kbits", type=int, default=16, help="bits of the base model: 4, 8 or 16")


def load_from_flags(flags: argparse.Namespace) -> tuple[Any, Any]:
    """As `load`, with what the flags of `add_model_flags` say."""
    return load(flags.base_model, flags.adapter, flags.device, flags.dtype, flags.load_in_kbits)


def fill_positional(parser: argparse.ArgumentParser, flags: argparse.Namespace, *names: str) -> None:
    """Takes flags from words without a name, as earlier versions of a command had them, and requires each."""
    for name, word in zip(names, flags.words, strict=False):
        setattr(flags, name, word)
    missing = [name for name in names if getattr(flags, name) is None]
    if missing or len(flags.words) > len(names):
        parser.error(f"set --{missing[0]}" if missing else f"unexpected argument {flags.words[-1]!r}")


def adapter_folder(name: str) -> str:
    """The folder of an adapter; one that is on the hub is downloaded.

    Raises:
        FileNotFoundError: If there is no `adapter_config.json`.
    """
    folder, why = name, ""
    if not Path(name).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        try:
            folder = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.jinja", "*.model"])
        except (OSError, HfHubHTTPError, ValueError) as error:
            why = f" Nor is it on the hub: {' '.join(str(error).split())[:200]}"
    if not (Path(folder) / "adapter_config.json").is_file():
        raise FileNotFoundError(f"no adapter at {name}: adapter_config.json is not there. Correct the path.{why}")
    return folder


def load(
    model: str | None, adapter: str | None, device: str | None = None, dtype: Dtype = "auto", load_in_kbits: int = 16
) -> tuple[Any, Any]:
    """Loads a base model and its tokenizer, with an adapter on it, ready to generate."""
    adapters = [] if adapter is None else [adapter_folder(adapter)]
    name = base_name(model, adapters)
    tokenizer = load_tokenizer(name, adapters)
    arguments = BaseArguments(name, dtype=dtype, load_in_kbits=load_in_kbits)
    return load_model(arguments, next(iter(adapters), None), device), tokenizer


def load_model(arguments: BaseArguments, adapter: str | None, device: str | None = None) -> Any:
    """Loads a base model, and the adapter of a folder on it."""
    base = load_base(arguments, device)
    if adapter is None:
        return base
    with as_usage_error(*ADAPTER_ERRORS, about=f"the adapter {adapter} cannot be loaded on {arguments.base_model}:"):
        return PeftModel.from_pretrained(base, adapter).to(base.device).eval()


def base_name(model: str | None, adapters: Sequence[str]) -> str:
    """The base model that adapters are to be loaded on."""
    if model is None and not adapters:
        raise ValueError("there is no model to load. Set --adapter DIR, --base_model NAME, or both.")
    configs = [PeftConfig.from_pretrained(adapter_folder(adapter)) for adapter in adapters]
    if model is not None:
        return model
    names = list(dict.fromkeys(str(config.base_model_name_or_path) for config in configs))
    if len(names) > 1:
        fix = "Compare those of one base model, or set --base_model to the one to load all of them on."
        raise ValueError(f"adapters were trained on different base models, {names}. {fix}")
    return names[0]


def load_tokenizer(model: str, adapters: Sequence[str]) -> Any:
    """The tokenizer that was saved with adapters, or else that of the base model."""
    own = [adapter for adapter in adapters if (Path(adapter) / "tokenizer_config.json").is_file()]
    tokenizers = []
    for name in own or [model]:
        with as_usage_error(
            OSError, ValueError, about=f"no tokenizer could be loaded from {name!r}; set --base_model:"
        ):
            tokenizers.append(AutoTokenizer.from_pretrained(name))
    if len(set(map(tokenizer_hash, tokenizers))) > 1:
        raise ValueError(f"the adapters {own} bring different tokenizers. Compare them in runs of their own.")
    return tokenizers[0]


def load_base(arguments: BaseArguments, device: str | None = None) -> Any:
    """Loads a base model for use."""
    device, options = choose_device(device), arguments.model_options()
    if arguments.load_in_kbits != 16:  # bitsandbytes quantises where the weights arrive, and moves them no more
        options["device_map"] = {"": device}
    name = arguments.base_model
    with as_usage_error(OSError, ValueError, about=f"base_model={name} cannot be loaded; set --base_model:"):
        base = AutoModelForCausalLM.from_pretrained(name, **options)
    # Packed, a 4-bit linear layer on a CPU could have in-features that are multiples of 64 alone.
    disable_bnb_cpu_packing(base)
    return (base if "device_map" in options else base.to(device)).eval()


def choose_device(device: str | None) -> str:
    """The given device, if there is one of that name; by default the accelerator, or else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = device or ("cpu" if accelerator is None else accelerator.type)
    # A torch without CUDA asserts; all other devices that are not there are RuntimeErrors.
    with as_usage_error(RuntimeError, AssertionError, about=f"set --device to one that is here, got {device!r}:"):
        torch.empty(0, device=device)
    return device
