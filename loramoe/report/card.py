"""The model card of a trained adapter: its README.md, which the Hugging Face hub shows as the adapter's page.

PEFT writes a form to fill in, and nobody fills it in. A run knows what belongs there: values, rows, results, how to
load the adapter, what it cannot do. The metadata at the head of the page is huggingface_hub's; the text is ours, and
names no path, so that a card can be published as it is. PEFT's `save_pretrained` updates a card that is there, and
keeps its text.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__
from peft import PeftConfig

from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import atomic_save_dir

CARD = "README.md"
TAGS = ("lora", "loramoe", "mixture-of-experts", "peft")
METRICS = {"loss": "evaluation loss", "perplexity": "perplexity", "recall": "recall"}
PAPER = "https://arxiv.org/abs/2312.09979"
CITATION = """\
@article{dou2023loramoe,
  title   = {LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via MoE-Style Plugin},
  author  = {Dou, Shihan and Zhou, Enyu and Liu, Yan and Gao, Songyang and Zhao, Jun and Shen, Wei and Zhou, Yuhao and
             Xi, Zhiheng and Wang, Xiao and Fan, Xiaoran and Pu, Shiliang and Zhu, Jiang and Zheng, Rui and Gui, Tao and
             Zhang, Qi and Huang, Xuanjing},
  journal = {arXiv preprint arXiv:2312.09979},
  year    = {2023}
}"""

# Fields of the configuration that a card always shows; the others are shown where they differ from their defaults.
_SHOWN = ("r", "lora_alpha", "lora_dropout", "lora_nums", "blc_weight", "blc_alpha", "blc_target")
_DIRECTIONS = {
    "paper": "the experts of a row's own type are pushed to *less* gate weight, as the released code does it",
    "match": "the experts of a row's own type are pushed to *more* gate weight",
}


@dataclass(frozen=True)
class Card:
    """What the card of an adapter says.

    Attributes:
        base_model: Name of the base model on the hub, or its folder here.
        config: The adapter's configuration, its target modules found.
        results: `before` and `after`, each with those of `loss`, `perplexity` and `recall` that were measured.
        training: How it was trained, by name.
        data: What it was trained and measured on, by name.
        versions: Versions of the libraries, by their names.
        repository: Where it will stand on the hub, None where that is not known.
    """

    base_model: str
    config: LoraMoeConfig
    results: Mapping[str, Mapping[str, float]]
    training: Mapping[str, object]
    data: Mapping[str, object]
    versions: Mapping[str, str]
    repository: str | None = None

    @property
    def base_on_hub(self) -> str | None:
        """The base model's name on the hub, None if it is a folder here: a path may look like such a name."""
        return hub_name(self.base_model)

    @property
    def base_name(self) -> str:
        """What the base model is called in the text: its name on the hub, or that of its folder without the way."""
        return public_name(self.base_model)


def hub_name(model: str) -> str | None:
    """Tells a name on the hub from a folder.

    Args:
        model: What `from_pretrained` was given.

    Returns:
        The name, or None for a folder, and for what cannot be a name.
    """
    if Path(model).exists():
        return None
    try:
        validate_repo_id(model)
    except HFValidationError:
        return None
    return model


def public_name(model: str) -> str:
    """What a model or an adapter is called where others read it: no path of this machine.

    Args:
        model: What `from_pretrained` was given.

    Returns:
        Its name on the hub, or that of its folder without the way.
    """
    return hub_name(model) or Path(model).resolve().name


def write_card(card: Card, folder: Path, figure: Path | None = None) -> None:
    """Writes the card into an adapter's folder, and the figure that it shows beside it; each is there whole or not.

    Args:
        card: What it says.
        folder: Folder of the adapter.
        figure: The figure of the experts' shares, copied; None for a card without one.
    """
    text = card_text(card, None if figure is None else figure.name)
    with atomic_save_dir(folder, writer=True) as draft:
        if figure is not None:
            shutil.copyfile(figure, draft / figure.name)
        ModelCard(f"---\n{metadata(card).to_yaml()}\n---\n\n{text}").save(draft / CARD)


def metadata(card: Card) -> ModelCardData:
    """What the hub reads of a card, to find, link and compare it.

    A folder is never given as the base model: the hub would take its path for a name. No data set is named either, as
    rows are read from files.
    """
    results = list(_eval_results(card.results))
    name = card.repository or f"{card.base_name}-loramoe"
    return ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        tags=list(TAGS),
        model_name=name.split("/")[-1] if results else None,
        eval_results=results or None,
        base_model=card.base_on_hub,
        base_model_relation="adapter" if card.base_on_hub else None,
    )


def _eval_results(results: Mapping[str, Mapping[str, float]]) -> Iterable[EvalResult]:
    for metric, name in METRICS.items():
        for when in ("after", "before"):
            value = results[when].get(metric)
            if value is not None and math.isfinite(value):  # metadata becomes JSON, without infinity
                yield EvalResult(
                    task_type="text-generation",
                    task_name="Text generation",
                    dataset_type="json",
                    dataset_name="facts asked for" if metric == "recall" else "evaluation rows",
                    dataset_config="facts" if metric == "recall" else "rows",  # by which results are kept apart
                    metric_type=metric,
                    metric_name=f"{name} {when} training",
                    metric_value=_rounded(value),
                )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def card_text(card: Card, figure: str | None) -> str:
    """The page itself, in Markdown.

    Args:
        card: What it says.
        figure: Name of the figure beside it, None for none.
    """
    sections = {
        "Use": _use(card),
        "Results": _results(card, figure),
        "The adapter": _table(_adapter_rows(card.config), "`LoraMoeConfig`"),
        "Training": _table(card.training.items(), ""),
        "Data": _table(card.data.items(), ""),
        "Limits": _LIMITS,
        "Citation": f"```bibtex\n{CITATION}\n```",
    }
    parts = [f"# LoRAMoE adapter for {card.base_name}", _introduction(card)]
    parts += [f"## {heading}\n\n{text}" for heading, text in sections.items() if text]
    # PEFT looks for this heading, and for its version in this form, and adds them where they are missing.
    versions = "\n".join(f"- {name} {version}" for name, version in card.versions.items())
    return "\n\n".join([*parts, f"### Framework versions\n\n{versions}"]) + "\n"


def _introduction(card: Card) -> str:
    config = card.config
    base = f"[{card.base_name}](https://huggingface.co/{card.base_name})" if card.base_on_hub else f"`{card.base_name}`"
    said = [
        f"A [LoRAMoE]({PAPER}) adapter for {base}. The base model is frozen; beside each of its linears "
        f"{_linears(config)} stand {config.lora_nums} LoRA experts of rank {config.r} and a softmax router, which "
        "mixes them anew for each token.",
        _constraint(config),
    ]
    if not card.base_on_hub:
        said.append("The base model was a folder of this name on the machine of the training.")
    return " ".join(said)


def _linears(config: LoraMoeConfig) -> str:
    targets = config.target_modules
    names = [targets] if isinstance(targets, str) else sorted(targets or ())
    return ", ".join(f"`{name}`" for name in names)


def _constraint(config: LoraMoeConfig) -> str:
    if config.blc_weight == 0:
        return "It was trained without the balancing constraint (`blc_weight=0`)."
    return (
        f"It was trained with the localized balancing constraint, of weight {config.blc_weight:g} and degree "
        f'{config.blc_alpha:g}, in the direction `blc_target="{config.blc_target}"`: {_DIRECTIONS[config.blc_target]}.'
    )


def _use(card: Card) -> str:
    base = f'"{card.base_name}"'
    adapter = f'"{card.repository}"' if card.repository else '"."  # this folder, or the name of its page on the hub'
    return f"""\
Where LoRAMoE is installed (`pip install .` in a checkout of it, with PEFT and transformers):

```python
import loramoe  # makes the method known to PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter = {adapter}
base = AutoModelForCausalLM.from_pretrained({base}){"" if card.base_on_hub else "  # where you have it"}
model = PeftModel.from_pretrained(base, adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)
```

`AutoPeftModelForCausalLM.from_pretrained(adapter)` works too, where the base model is found by the name above.
Lay prompts out as `prompt_template` below says; `python -m loramoe.generate` does."""


def _results(card: Card, figure: str | None) -> str:
    after, before = card.results["after"], card.results["before"]
    rows = [
        f"| {name} | {f'{before[metric]:.4g}' if metric in before else '–'} | {after[metric]:.4g} |"
        for metric, name in METRICS.items()
        if metric in after
    ]
    parts = []
    if rows:
        parts.append("\n".join(["| | before | after |", "|---|---|---|", *rows]))
        parts.append(
            "Loss and perplexity are the language model's alone, on rows that were not trained on; recall is the share "
            "of the facts asked for that greedy decoding gives."
        )
    if figure is not None:
        parts.append(f"![Which expert served which task type, layer by layer]({figure})")
    return "\n\n".join(parts)


def _adapter_rows(config: LoraMoeConfig) -> list[tuple[str, object]]:
    general = {field.name for field in dataclasses.fields(PeftConfig)}
    rows: list[tuple[str, object]] = []
    for field in dataclasses.fields(config):
        default = field.default_factory() if callable(field.default_factory) else field.default
        value = getattr(config, field.name)
        if field.name in _SHOWN or (field.name not in general and value not in (default, None)):
            rows.append((f"`{field.name}`", sorted(value) if isinstance(value, set) else value))
    return rows


def _table(rows: Iterable[tuple[str, object]], heading: str) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join([f"| {heading} | |", "|---|---|", *lines])


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


_LIMITS = """\
- It cannot be merged into the base model: the mixture depends on the input. `merge_and_unload` is refused, and to
  tools that know only LoRA goes an approximation at best, the one of `loramoe.export_lora`.
- Without `import loramoe`, PEFT does not know the method and says `KeyError: 'LORAMOE'`.
- It was measured as the tables say, and in no other way. What holds for the base model, its licence among it, holds
  for the adapter too."""
