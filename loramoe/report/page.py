"""The page of a report, in HTML and in Markdown, made of its numbers and pictures.

The HTML is one file that asks nothing of a network and runs no script: pictures are in it as data URIs. It is
well-formed XML too, so that a parser can check it. Jinja, which torch brings along, escapes whatever a tokenizer, a
path or a file of rows may have put into a name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from loramoe.report.figure import MEANING
from loramoe.report.measures import Measures
from loramoe.report.pictures import Picture
from loramoe.report.template import HTML, MARKDOWN
from loramoe.report.tokens import visible
from loramoe.tuner.config import LoraMoeConfig

SECTIONS: Final = {
    "gates": (
        "Which expert served which task type",
        "Mean gate of each expert over the real tokens of the rows of one task type, and over the linears of a layer. "
        "The white line parts the groups.",
    ),
    "shares": (
        "Which group served which task type",
        "Mean gates of the experts of one type added up. If the groups did not tell the task types apart, the bars "
        "would be alike.",
    ),
    "entropy": (
        "How decided the routers are",
        "Entropy of the gates divided by the logarithm of the number of experts. Of each token's gates, averaged over "
        "the tokens: 1 where a router makes no choice, 0 where it takes one expert alone. Of the mean gates: 1 where "
        "all experts get as much in the end, though each token may have chosen.",
    ),
    "variation": (
        "How unevenly the experts are used",
        "Coefficient of variation of the experts' importance, which is their gate weight summed over all tokens: "
        "standard deviation over mean, by the unbiased variance; mean over the linears of a layer. 0 where all experts "
        "get as much, the square root of their number where one gets everything.",
    ),
}


@dataclass(frozen=True)
class Source:
    """What was looked at. Names without paths, so that a page can be shown as it is.

    Attributes:
        adapter: The adapter.
        base_model: The base model.
        data: The rows.
        config: The adapter's configuration.
    """

    adapter: str
    base_model: str
    data: str
    config: LoraMoeConfig

    @property
    def constraint(self) -> str:
        """Which constraint the adapter was trained with, and what that does."""
        config = self.config
        if config.blc_weight == 0:
            return "none (blc_weight=0)"
        direction = f'blc_target="{config.blc_target}": {MEANING[config.blc_target]}'
        return f"{direction}; blc_weight={config.blc_weight:g}, blc_alpha={config.blc_alpha:g}"


def facts(measures: Measures, source: Source) -> dict[str, str]:
    """What stands at the head of a page, by name."""
    tokens = zip(measures.task_types, measures.tokens_T, strict=True)
    kinds = {group: [e for e, kind in enumerate(measures.expert_types) if kind == group] for group in measures.groups}
    beside = f"beside each of {len(measures.linears)} linears in {len(measures.layers)} layers"
    return {
        "adapter": source.adapter,
        "base model": source.base_model,
        "experts": f"{len(measures.expert_types)} of rank {_ranks(source.config)} {beside}; "
        + ", ".join(f"type {group}: {_joined(experts)}" for group, experts in kinds.items()),
        "constraint in training": source.constraint,
        "rows": f"{measures.rows:,} of {source.data}",
        "tokens": ", ".join(f"type {task_type}: {count:,}" for task_type, count in tokens),
    }


def _ranks(config: LoraMoeConfig) -> str:
    others = ", ".join(f"{name}: {rank}" for name, rank in config.rank_pattern.items())
    return f"{config.r} ({others}, by rank_pattern)" if others else str(config.r)


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def html(measures: Measures, source: Source, pictures: Sequence[Picture], folder: Path) -> str:
    """The page in HTML.

    Args:
        measures: The numbers.
        source: What was looked at.
        pictures: The pictures.
        folder: Where their PNGs are.

    Returns:
        The whole page.
    """
    environment = _environment(autoescape=True)
    environment.filters["data_uri"] = lambda file: _data_uri(folder / file)
    return _rendered(environment, HTML, measures, source, pictures)


def markdown(measures: Measures, source: Source, pictures: Sequence[Picture]) -> str:
    """The page in Markdown, which shows the PNGs beside it.

    Args:
        measures: The numbers.
        source: What was looked at.
        pictures: The pictures.

    Returns:
        The whole page.
    """
    environment = _environment(autoescape=False)
    environment.filters["literal"] = literal
    return _rendered(environment, MARKDOWN, measures, source, pictures)


def _rendered(
    environment: Environment, template: str, measures: Measures, source: Source, pictures: Sequence[Picture]
) -> str:
    return environment.from_string(template).render(
        m=measures,
        title=f"The experts of {source.adapter}",
        facts=facts(measures, source),
        sections=SECTIONS,
        pictures={name: [picture for picture in pictures if picture.section == name] for name in SECTIONS},
    )


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": visible, "percent": lambda share: f"{share:.1%}", "number": _number}
    environment.globals["zip"] = zip
    return environment


def _number(value: float) -> str:
    return f"{value:.3f}"


def _data_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def literal(text: Any) -> str:
    """A text within a line that Markdown shows as it is: all that could be markup becomes a character reference."""
    return re.sub(r"[\\`*_\[\]<>&|~$@]", lambda match: f"&#{ord(match.group())};", str(text))
