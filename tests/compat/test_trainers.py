"""Label smoothing with and without the constraint; the trainers themselves run in tests/test_trainers.py."""

from __future__ import annotations

import torch
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_pt_utils import LabelSmoother

from loramoe.compat.trainers import extend_label_smoother


def test_label_smoothing_adds_the_constraint_once() -> None:
    extended = LabelSmoother.__call__
    extend_label_smoother(LabelSmoother)
    assert LabelSmoother.__call__ is extended
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    smoother = LabelSmoother(epsilon=0.1)
    plain = extended.__wrapped__(smoother, {"logits": logits}, labels)
    outputs = CausalLMOutput(logits=logits)
    for without in (outputs, {"logits": logits}, (logits,)):
        assert torch.equal(smoother(without, labels), plain)
    outputs |= {"balance_loss": torch.tensor(0.5), "skips_first_label": True}
    assert torch.equal(smoother(outputs, labels), plain + 0.5)
