"""What bitsandbytes does on a CPU that a training has to prevent."""

from __future__ import annotations

from torch import nn


def disable_bnb_cpu_packing(model: nn.Module) -> None:
    """Have the 4-bit layers of bitsandbytes pass the gradient on, whatever the model computes first.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs a weight when it is first used in evaluation mode, for good. A
    packed layer has no backward, so after an evaluation all layers below would get a wrong gradient without an error.
    """
    for name, module in model.named_modules():
        if "support_avx512bf16_for_cpu" not in vars(module):
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"{name} is a 4-bit layer that bitsandbytes has packed for inference on this CPU, through which no "
                "gradient passes. Load the base model again, and add the adapter before the model is first used."
            )
        module.support_avx512bf16_for_cpu = False
