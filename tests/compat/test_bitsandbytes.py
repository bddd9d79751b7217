"""The guard against packed 4-bit layers, on a stand-in; the real ones are in tests/ecosystem/test_bitsandbytes.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from loramoe.compat.bitsandbytes import disable_bnb_cpu_packing


@pytest.mark.parametrize("quant_state", [None, SimpleNamespace(), SimpleNamespace(packing_format_for_cpu=False)])
def test_packing_is_switched_off(quant_state: object) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].support_avx512bf16_for_cpu = True
    model[1].weight.quant_state = quant_state
    disable_bnb_cpu_packing(model)
    assert not model[1].support_avx512bf16_for_cpu
    assert not hasattr(model[0], "support_avx512bf16_for_cpu")
    model[1].weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(ValueError, match="1 is a 4-bit layer"):
        disable_bnb_cpu_packing(model)
