"""How arms are called and drawn, the same in every table and figure.

Colours are Okabe and Ito's, without their yellow; each arm also has its own marker and dashes, so that figures read in
black and white.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from experiments.knowledge_forgetting.arms import ARMS


@dataclass(frozen=True)
class Look:
    """How an arm is told from the others.

    Attributes:
        colour: Of its line.
        marker: Of its points.
        dash: Of its line.
    """

    colour: str
    marker: str
    dash: Any

    @property
    def dark(self) -> str:
        """Its colour for words: 40 % darker, to be read on white."""
        return "#" + "".join(f"{int(self.colour[n : n + 2], 16) * 6 // 10:02X}" for n in (1, 3, 5))


LOOKS: Final = {  # in the order in which they are told
    "base": Look("#000000", "*", ":"),
    "full": Look("#000000", "D", "-"),
    "lora_mlp": Look("#E69F00", "s", (0, (5, 2))),
    "lora_all": Look("#D55E00", "<", (0, (5, 1.5, 1, 1.5))),
    "loramoe_free": Look("#56B4E9", "^", (0, (1, 1))),
    "loramoe_paper": Look("#CC79A7", "v", (0, (3, 1, 1, 1, 1, 1))),
    "loramoe_match": Look("#009E73", ">", (0, (8, 2))),
    "loramoe_all": Look("#0072B2", "o", "-"),
}
MODELS: Final = {  # by scale: what each table and each figure must say of its base model
    "tiny": "a Llama of 1.3 million parameters that knows an invented world",
    "real": "SmolLM2-135M-Instruct, whose weights were quantised to 4 bits before",
    "real_gpu": "SmolLM2-135M-Instruct, whose weights were quantised to 4 bits before",
}
_OTHER: Final = Look("#767676", "X", (0, (2, 1)))


def look(arm: str) -> Look:
    """How an arm is drawn; one that has no look of its own is grey."""
    return LOOKS.get(arm, _OTHER)


def words(arm: str) -> str:
    """An arm's name for readers."""
    return ARMS[arm].label if arm in ARMS else arm


def model_of(scale: str) -> str:
    """A scale's base model for readers."""
    return MODELS.get(scale, scale)


def rank(arm: str) -> tuple[int, str]:
    """What arms are sorted by: those with a look in that order, then others by name."""
    return (list(LOOKS).index(arm) if arm in LOOKS else len(LOOKS), arm)
