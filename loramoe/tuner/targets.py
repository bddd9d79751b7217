"""Which layers an adapter goes on: defaults by architecture, "all-linear", and checks of the names of a user."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES, INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

Names = Iterable[str]
# Names of the MLP's linear layers, where the paper puts its experts, and the `model_type`s of transformers that have
# them. A str is a regular expression, for architectures whose attention has layers of the same names.
_MODEL_TYPES: dict[tuple[str, ...] | str, str] = {
    ("gate_proj", "up_proj", "down_proj"): (
        "cohere cohere2 cwm ernie4_5 exaone4 gemma gemma2 gemma3 gemma3_text gemma4_text granite helium "
        "hunyuan_v1_dense llama minicpm3 ministral ministral3 mistral olmo olmo2 olmo3 qwen2 qwen3 qwen3_5 "
        "qwen3_5_text seed_oss smollm3 stablelm vaultgemma"
    ),
    ("gate_up_proj", "down_proj"): "glm glm4 phi3",
    ("up_proj", "down_proj"): "apertus arcee mpt nemotron",
    ("w1", "w2", "w3"): "lfm2",
    ("mlp.c_fc", "mlp.c_proj"): "gpt2 gpt_bigcode gpt_neo starcoder2",
    ("dense_h_to_4h", "dense_4h_to_h"): "bloom falcon gpt_neox gpt_neox_japanese persimmon",
    ("fc1", "fc2"): "bart biogpt mbart nanochat opt phi xglm",
    ("fc_in", "fc_out"): "codegen gptj",
    ("wi", "wi_0", "wi_1", "wo"): "mt5 t5 umt5",
    r"(.*\.)?layer\.\d+\.(intermediate|output)\.dense": "bert deberta deberta-v2 electra roberta xlm-roberta",
}
DEFAULT_TARGETS = {model_type: names for names, types in _MODEL_TYPES.items() for model_type in types.split()}
# Parts of an expert: fused weights in transformers 5, linear layers in transformers 4.
_EXPERT_WEIGHTS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}
_MLP_LAYERS = {*_EXPERT_WEIGHTS, "fc1", "fc2", "input_linear", "output_linear"}
_ATTENTION = re.compile("attn|attention")
_ROUTER = re.compile("(^|_)router(_|$)|^shared_experts?_gate$")


def default_targets(model: nn.Module, model_type: str | None) -> set[str]:
    """Return names of the MLP's linear layers; ValueError if the architecture is unknown.

    Adapters cannot go on fused experts. Where a model has some, its dense and shared MLPs are adapted, or else the
    projections of its attention, and one warning names what stays frozen.
    """
    view, known = ModelView(model), DEFAULT_TARGETS.get(model_type or "", ())
    matches = _match(known, view.modules)
    chosen = [name for names in matches.values() for name in names] or view.layers_beside_experts()
    if not chosen:
        names = [name for name in view.linear if not _ATTENTION.search(name)] or view.linear
        examples = list(dict.fromkeys(name if _leaf(name).isdigit() else _leaf(name) for name in names))[:4]
        raise ValueError(
            f"which linear layers are the MLP's is not known for model_type={model_type!r}. Name them with "
            f"target_modules, for example target_modules={examples}."
        )
    if not view.fused and not isinstance(known, str):
        return {name for name in matches if matches[name]}
    if view.fused:
        warnings.warn(
            f"The experts in {', '.join(_patterns(view.fused))} are fused weights and stay frozen. LoRAMoE adapts "
            f"{len(chosen)} other layers: {', '.join(_patterns(chosen))}. Set target_modules to choose others.",
            stacklevel=2,
        )
    return set(chosen)


def expand_all_linear(model: nn.Module, task_type: str | None = None) -> set[str]:
    """Return the full names that target_modules="all-linear" stands for: those of PEFT, without routers."""
    view = ModelView(model)
    heads = [name for name in SEQ_CLS_HEAD_NAMES if name in view.modules and task_type == "SEQ_CLS" and not view.head]
    layers = {name: view.modules[name] for name in view.linear if name not in heads[:1]}
    return {name for name, m in layers.items() if isinstance(m, (nn.Linear, Conv1D)) or "Linear" in type(m).__name__}


def validate_targets(model: nn.Module, config: Any) -> None:
    """Raise ValueError, before a model is changed, unless each name in a configuration matches what can be adapted."""
    try:
        _check_modules_to_save(model, config)
        if config.target_modules is not None and config.target_modules != DUMMY_TARGET_MODULES:
            _check_targets(model, config)
    except (re.error, RecursionError, OverflowError) as error:
        pattern = getattr(error, "pattern", "a name")
        raise ValueError(f"{pattern!r} in the configuration is not a regular expression: {error}. Fix it.") from error


def _check_modules_to_save(model: nn.Module, config: Any) -> None:
    names, given = _visible_modules(model, remove_duplicate=False), getattr(config, "modules_to_save", None) or ()
    if isinstance(given, str):  # PEFT would look for each letter
        raise ValueError(f"modules_to_save must be a list of names; got {given!r}. Pass [{given!r}].")
    if getattr(config, "task_type", None) in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"):
        given = {*given} - {*SEQ_CLS_HEAD_NAMES, "qa_outputs"}  # PEFT adds them, whether a model has them or not
    _check_found("modules_to_save", [entry for entry in given if not any(n.endswith(entry) for n in names)], names)


def _check_targets(model: nn.Module, config: Any) -> None:
    view, targets = ModelView(model), config.target_modules
    if isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        config = copy.copy(config)
        config.target_modules = matched = expand_all_linear(model, config.task_type)
    else:
        matched = _check_target_names(view, targets)
    _check_layers_to_transform(view, config, matched)
    selected = [name for name in view.modules if name in matched and check_target_module_exists(config, name)]
    for name in selected:
        view.check_adaptable(name)
    for field in ("rank_pattern", "alpha_pattern") if selected else ():  # PEFT raises if none is selected
        keys = getattr(config, field, None) or ()
        missing = [key for key in keys if not any(re.match(rf"(.*\.)?({key})$", name) for name in selected)]
        _check_found(field, missing, selected, where="adapted layers")


def _check_target_names(view: ModelView, targets: str | Names) -> set[str]:
    """Return the names that target_modules matches, before exclusions."""
    matches, fused = _match(targets, view.modules), _match(targets, view.fused_weights())
    missing, frozen = [target for target in matches if not matches[target]], ", ".join(_patterns(view.fused))
    in_experts = [target for target in missing if fused[target] or (frozen and "experts" in target.split("."))]
    why = "a str must match whole names, as a regular expression" if isinstance(targets, str) else ""
    why = f"weights of fused experts cannot be adapted, here {frozen}" if in_experts else why
    _check_found("Target modules", in_experts or missing, view.linear, why)
    partly = sorted(target for target in matches if fused[target])
    if partly:
        warnings.warn(
            f"target_modules {partly} also name weights of fused experts, which stay frozen: {frozen}. LoRAMoE adapts "
            "only the linear layers of these names.",
            stacklevel=4,
        )
    return {name for names in matches.values() for name in names}


def _check_found(field: str, missing: Names, names: Names, why: str = "", where: str = "base model") -> None:
    nearest: list[str] = []
    for entry in (missing := sorted(missing)):
        candidates = sorted({".".join(name.split(".")[-1 - entry.count(".") :]) for name in names})
        nearest += difflib.get_close_matches(entry, candidates, n=1)
    if missing:
        exist = f"there are {sorted({_leaf(name) for name in names})[:8]}"
        hint = f"{why}; {exist}" if why else f"nearest: {nearest}" if nearest else exist
        raise ValueError(f"{field} {missing} not found in the {where}; {hint}. Correct or remove each.")


def _check_layers_to_transform(view: ModelView, config: Any, matched: set[str]) -> None:
    wanted, patterns = getattr(config, "layers_to_transform", None), getattr(config, "layers_pattern", None) or ()
    starts = [rf"(?:^|.*?\.){p}\." for p in ([patterns] if isinstance(patterns, str) else patterns)]  # as in PEFT
    numbered = re.compile("|".join(rf"(?:{start})(?=\d+\.)" for start in starts or [r".*?\.[^.]*\."]))
    lists = {name: found[0] for name in view.modules if (found := numbered.match(name))}
    used = {lists[name] for name in matched if name in lists}
    indices = (int(name[len(start) :].partition(".")[0]) for name, start in lists.items() if start in used)
    count = 1 + max(indices, default=-1)
    wrong = [index for index in ([wanted] if isinstance(wanted, int) else wanted or ()) if not 0 <= index < count]
    if wrong:
        raise ValueError(
            f"layers_to_transform {wrong} not found: {count} layers hold target_modules, counted from 0, with "
            f"layers_pattern={patterns or None!r}. Correct one of them."
        )


class ModelView:
    """What a model holds: base layers by name, without what is inside adapters, and the kinds that matter here."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = _visible_modules(model)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        self.head = next((name for name, module in model.named_modules() if module is head), None)
        self.routers, self.fused = set[str](), dict[str, nn.Module]()
        with_experts = {name.rpartition(".")[0] for name in self.modules if "expert" in _leaf(name)}
        for name, module in self.modules.items():  # a parent comes before its children
            parent, _, leaf = name.rpartition(".")
            is_router = _ROUTER.search(leaf) or type(module).__name__.endswith("Router") or parent in self.routers
            if is_router or (leaf in ("gate", "gating") and parent in with_experts):
                self.routers.add(name)
            elif _is_fused(leaf, module) and not any(name.startswith(f"{outer}.") for outer in self.fused):
                self.fused[name] = module
        linear = [name for name, module in self.modules.items() if _is_linear(module)]
        self.linear = [name for name in linear if name not in self.routers and name != self.head]

    def fused_weights(self) -> list[str]:
        """Return the names by which a user may mean weights of fused experts."""
        weights = {name: {*_EXPERT_WEIGHTS, *dict(module.named_parameters())} for name, module in self.fused.items()}
        return [f"{name}.{weight}" for name in weights for weight in weights[name]]

    def layers_beside_experts(self) -> list[str]:
        """Return the MLP layers that are no experts, or else those of the attention."""
        names = [name for name in self.linear if self.fused and not re.search("vision|visual|image|audio|speech", name)]
        mlp = [name for name in names if _leaf(name) in _MLP_LAYERS and not _ATTENTION.search(name)]
        return mlp or [name for name in names if _ATTENTION.search(name) and "gate" not in _leaf(name)]

    def check_adaptable(self, name: str) -> None:
        """Raise ValueError unless a module is a linear layer that may be adapted."""
        wrong = "" if _is_linear(self.modules[name]) else "LoRAMoE adapts linear layers"
        wrong = "Routers cannot be adapted" if name in self.routers else wrong
        wrong = "Fused experts cannot be adapted" if name in self.fused else wrong
        if wrong:
            kind, suffix = type(self.modules[name]).__name__, re.split(r"(?:^|\.)\d+\.", name)[-1]
            raise ValueError(f"{wrong}; got {kind}. Leave it out of target_modules, or set exclude_modules={[suffix]}.")


def _visible_modules(model: nn.Module, remove_duplicate: bool = True) -> dict[str, nn.Module]:
    visible, inside = dict[str, nn.Module](), "\n"  # no name starts so
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        if name and not name.startswith(inside):
            visible[name] = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            inside = f"{name}." if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) else inside
    return visible


def _is_linear(module: nn.Module) -> bool:
    """Whether an adapter can go on a module: on quantised and parallel linear layers too, as in PEFT's LoRA."""
    never_called, kind = nn.modules.linear.NonDynamicallyQuantizableLinear, type(module).__name__
    if isinstance(module, (AuxiliaryTrainingWrapper, never_called)) or "GroupedLinear" in kind:  # another output shape
        return False
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sized or isinstance(module, Conv1D) or kind.endswith("Linear")


def _is_fused(leaf: str, module: nn.Module) -> bool:
    """Whether a module is named after experts, and has weights but no linear layers."""
    if "expert" not in f"{leaf} {type(module).__name__}".lower() or isinstance(module, AuxiliaryTrainingWrapper):
        return False
    has_layers = any(_is_linear(part) or isinstance(part, nn.Embedding) for part in module.modules())
    return not has_layers and any(weight.dim() > 1 for weight in module.parameters())


def _match(targets: str | Names, names: Names) -> dict[str, list[str]]:
    """By target, the names that PEFT matches: a str matches whole names, an entry of a list also ends of names."""
    if isinstance(targets, str):
        return {targets: [name for name in names if re.fullmatch(targets, name)]}
    return {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in targets}


def _patterns(names: Names) -> list[str]:
    """Names with each number replaced by *, each once."""
    return list(dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name) for name in names))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
