"""The base model, its tokenizer, the LoRAMoE adapter on it, and attention over packed batches.

transformers' SDPA attention sees a packed row under a dense mask [S, S] over the whole row, most of it False.
`attention_by_sample` computes the same attention sample by sample with the mask's blocks on the diagonal: exact for any
mask within a sample (sliding windows too), and Σ length² instead of (Σ length)². FlashAttention's varlen kernels need
none of this; eager attention stays as it is.

Whether a model keeps packed samples apart depends on its architecture, its attention and the version of transformers,
and a model that does not gives no sign. So `check_packing` compares one sample alone with the same sample packed.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from loramoe.data import PackedCollator
from loramoe.training.arguments.flags import ADAPTER_FLAGS, ModelArguments, TrainArguments
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.distributed import is_fsdp
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import ADAPTER_ERRORS, UsageError, as_usage_error

logger = logging.getLogger(__name__)

BY_SAMPLE = "sdpa_by_sample"
TOLERATED = 0.05  # of what seeing the other sample changes; rounding in bfloat16 came to 0.01, in float32 to 1e-5
_WITHOUT_PACKING = "Set --packing false; --group_by_length true wastes little padding too."
_MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # a mask decides what a token sees


def adapter_config(arguments: ModelArguments) -> LoraMoeConfig:
    """The adapter's configuration: that of the flags, or of the adapter to continue from."""
    with as_usage_error(ValueError):
        requested = arguments.adapter_config()
    if arguments.adapter is None:
        return requested
    with as_usage_error(*ADAPTER_ERRORS, about=f"adapter={arguments.adapter} holds no adapter to continue from:"):
        config = PeftConfig.from_pretrained(arguments.adapter)
    if not isinstance(config, LoraMoeConfig):
        kind = config.peft_type
        raise UsageError(f"adapter must hold a LoRAMoE adapter; {arguments.adapter} is of type {kind}. Correct it.")
    own = {name: getattr(config, name) for name in ("r", "types_of_experts", *ADAPTER_FLAGS)}
    replaced = ", ".join(f"{name}={own[name]!r}" for name in own if own[name] != getattr(requested, name))
    if replaced:
        logger.warning("the configuration of the adapter to continue from replaces the flags: %s", replaced)
    return config


def load_tokenizer(arguments: ModelArguments) -> Any:
    """The tokenizer of the flags, or else of the base model."""
    name = arguments.tokenizer_name_or_path or arguments.base_model
    options = {} if arguments.tokenizer_name_or_path else arguments.hub_options
    with as_usage_error(OSError, ValueError, about=f"the tokenizer {name} cannot be loaded:"):
        return AutoTokenizer.from_pretrained(name, **options)


def load_base(arguments: ModelArguments, args: TrainArguments) -> Any:
    """Loads the base model, in 4 or 8 bits if the flags say so, each process to its own device."""
    compute_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    options = arguments.model_options(compute_dtype)
    if not is_deepspeed_zero3_enabled() and not is_fsdp(args) and args.device.type != "cpu":
        options["device_map"] = {"": args.device}  # else each process holds all of it in host memory first
    with as_usage_error(OSError, ValueError, about=f"base_model={arguments.base_model} cannot be loaded:"):
        model = AutoModelForCausalLM.from_pretrained(arguments.base_model, **options)
    if arguments.load_in_kbits != 16:
        # use_reentrant=True would leave the routers without gradient.
        model = prepare_model_for_kbit_training(
            model, bool(args.gradient_checkpointing), gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return model


def empty_base(config: Any) -> Any:
    """The base model without weights, to check names and count parameters on."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    with init_empty_weights(include_buffers=False):  # not by from_config, which ZeRO-3 would shard
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.tie_weights()
    return model


def add_adapter(base: Any, arguments: ModelArguments, config: LoraMoeConfig) -> PeftModel:
    """Adds a new adapter to a base model, or loads the one to continue from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # of peft, in every run
        if arguments.adapter is None:
            with as_usage_error(ValueError):
                return get_peft_model(base, config, adapter_name=ADAPTER)
        with as_usage_error(*ADAPTER_ERRORS, about=f"adapter={arguments.adapter} cannot be loaded:"):
            return PeftModel.from_pretrained(base, arguments.adapter, adapter_name=ADAPTER, is_trainable=True)


def attention_by_sample(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    sample_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA attention on the diagonal blocks of a packed row, by the interface of transformers.

    The mask is that of the whole row, [1, 1, S, S], None for causal attention. `cu_seq_lens_q` are the bounds of the
    samples, [M + 1], None where the batch is not packed; reading the lengths from them waits for the device.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    lengths: list[int] = cu_seq_lens_q.diff().tolist() if sample_lengths is None else sample_lengths
    parts, begin = [], 0
    for q, k, v in zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True):
        end = begin + q.shape[2]
        block = None if attention_mask is None else attention_mask[..., begin:end, begin:end]
        parts.append(sdpa_attention_forward(module, q, k, v, block, **kwargs)[0])
        begin = end
    return torch.cat(parts, dim=1), None


def enable_varlen_attention(model: Any) -> None:
    """Makes a base model that uses SDPA attention use `attention_by_sample`; any other attention stays."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(BY_SAMPLE, attention_by_sample)
    AttentionMaskInterface.register(BY_SAMPLE, sdpa_mask)
    model.set_attn_implementation(BY_SAMPLE)


@torch.no_grad()
def check_packing(model: nn.Module, config: Any, device: torch.device) -> None:
    """Raises ValueError for a model that lets the samples of a packed row see each other, or counts positions wrong.

    A sample's logits are compared between a packed row and a row of its own. The measure is the change of the logits
    when the other sample is the beginning of the same text.
    """
    text = config.get_text_config()
    mixing = sorted(set(getattr(text, "layer_types", None) or ()) - _MASKED_LAYERS)
    if mixing:  # with the small weights of a new model, a convolution's leak would drown in rounding
        raise ValueError(f"packing needs a mask in every layer; this model has {mixing[0]} layers. {_WITHOUT_PACKING}")
    generator = torch.Generator().manual_seed(0)
    before, sample = (torch.randint(text.vocab_size, (n,), generator=generator).tolist() for n in (5, 8))

    def logits(*samples: list[int]) -> Tensor:
        batch = PackedCollator()([{"input_ids": ids, "labels": ids} for ids in samples])
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "labels"}
        last: Tensor = model(**inputs).logits[0, -len(sample) :]
        return last.cpu().double()  # MPS has no float64

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        alone, packed, seen = logits(sample), logits(before, sample), logits(before + sample)
    except (TypeError, ValueError) as refusal:  # of an unknown argument, in words that differ by architecture
        raise ValueError(f"this model does not take packed rows ({refusal}). {_WITHOUT_PACKING}") from refusal
    finally:
        for module, training in modes.items():
            module.training = training
    change, measure = (packed - alone).norm(), (seen - alone).norm()
    if not change <= TOLERATED * measure:
        raise ValueError(
            f"this model does not keep the samples of a packed row apart: packing changes logits by {change:.3g}, more "
            f"than {TOLERATED} of what the other sample as own text changes, {measure:.3g}. {_WITHOUT_PACKING}"
        )
