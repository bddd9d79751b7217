"""The files of an adapter, of the original release or ours: read with suspicion, whoever made them.

An adapter is downloaded, copied and cut off like any other file, and `adapter_model.bin` is a pickle, which could run
code. So nothing is unpickled but tensors, and what cannot be read is told by file, reason and cure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

CONFIG, PICKLED, SAFE = "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"


class CheckpointError(ValueError):
    """An adapter that cannot be read, converted or put on a model; says which, why, and what to do."""


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of an adapter, original or ours. Pickles are read with `weights_only`.

    Args:
        folder: Folder of the adapter.

    Returns:
        The content of adapter_config.json, and the tensors by name.

    Raises:
        CheckpointError: If a file is missing or cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is not an adapter: there is no {CONFIG} in it.")
    config, file = read_config(folder / CONFIG), weights_file(folder)
    read = load_file if file.name == SAFE else partial(torch.load, map_location="cpu", weights_only=True)
    return config, _read_weights(file, read)


def weights_file(folder: Path) -> Path:
    """The file of an adapter's weights: safetensors, or else a pickle.

    Args:
        folder: Folder of the adapter.

    Returns:
        The file.

    Raises:
        CheckpointError: If there is neither.
    """
    for name in (SAFE, PICKLED):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no weights: neither {SAFE} nor {PICKLED} is in it.")


def read_config(file: Path) -> dict[str, Any]:
    """The content of an adapter_config.json.

    Args:
        file: The file.

    Returns:
        Its fields, of which only `peft_type` is checked: it is text or null.

    Raises:
        CheckpointError: If it cannot be read, is not JSON, or is not one object.
    """
    try:
        config = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}). Make it a file that you may read.") from error
    except RecursionError as error:
        raise CheckpointError(f"{file} is not JSON: nested too deeply. Copy or download it again.") from error
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise CheckpointError(f"{file} is not JSON: {error}. Copy or download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} should hold one JSON object, but holds a {type(config).__name__}.")
    kind = config.get("peft_type")
    if not isinstance(kind, (str, type(None))):
        raise CheckpointError(f"{file}: peft_type should be text such as 'LORAMOE'; got peft_type={kind!r}.")
    return config


def _read_weights(file: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    try:
        weights = read(file)
    except Exception as error:  # there is no end to what an unpickler may raise, depending on the bytes
        raise damaged(file, error) from error
    check_tensors(file, weights)
    tensors: dict[str, Tensor] = weights
    return tensors


def damaged(file: Path, error: Exception) -> CheckpointError:
    """What to raise where reading weights failed.

    Args:
        file: The file, or the folder it is in.
        error: What reading it raised.

    Returns:
        The error to raise, whose message is one line.
    """
    # torch tells at length how to load a pickle all the same, which is the wrong advice here.
    lines = str(error).replace("WeightsUnpickler error:", "\n").splitlines()
    told = [line for line in lines if line.strip() and "eights" not in line]
    reason = told[0].split(". ")[0].strip(" .") if told else type(error).__name__
    return CheckpointError(
        f"{file} is damaged, or holds more than tensors, and was not loaded: {reason}. Copy or download it again."
    )


def check_tensors(file: Path, weights: Any) -> None:
    """Checks that what a file held is tensors by name: a pickle may hold anything.

    Args:
        file: The file, for the message.
        weights: What was read from it.

    Raises:
        CheckpointError: If it is anything else, or if a tensor is not a plain one with its values in memory.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{file} should hold tensors by name, but holds a {type(weights).__name__}.")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{file} should hold tensors by name, but holds {name!r}, a {type(tensor).__name__}: "
                "it is no file of weights."
            )
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(f"{file}: {name} is a sparse, quantised or empty tensor; expected a plain one.")
