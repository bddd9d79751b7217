"""Every arm can be told from every other, without colours too."""

from __future__ import annotations

from experiments.knowledge_forgetting.analysis.style import LOOKS, look, rank, words
from experiments.knowledge_forgetting.arms import ARMS


def test_every_arm_has_a_look_of_its_own():
    assert ARMS.keys() <= LOOKS.keys()
    assert len({of.marker for of in LOOKS.values()}) == len(LOOKS)
    assert look("full").dark == "#000000"
    assert look("lora_mlp").dark == "#8A5F00"


def test_an_arm_without_a_look_comes_last_under_its_own_name():
    assert sorted(["other", "loramoe_free", "another", "base"], key=rank) == [
        "base",
        "loramoe_free",
        "another",
        "other",
    ]
    assert words("other") == "other"
    assert words("full") == "full fine-tuning"
    assert look("other").colour == "#767676"
