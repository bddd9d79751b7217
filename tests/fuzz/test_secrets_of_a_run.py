"""A run with tokens in flags, in a flag file and in the environment writes none of them anywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
FLAG, KEY, TOKEN = "hf_PlantedInAFlag", "PlantedKeyOfWandb" + "0" * 23, "hf_PlantedInTheEnvironment"


@pytest.mark.slow
@pytest.mark.parametrize("from_file", [False, True])
def test_no_secret_is_written(from_file: bool, own_dataset_cache: None, tiny_task, tmp_path: Path) -> None:
    trackers = [name for name in ("tensorboard", "wandb") if importlib.util.find_spec(name)]
    secret = {} if from_file else {"hub_token": FLAG}
    flags = tiny_task.flags(tmp_path / "out", max_steps=2, save_steps=1, report_to=",".join(trackers), **secret)
    if from_file:
        (tmp_path / "flags.yaml").write_text(json.dumps({"hub_token": FLAG}))
        flags = [str(tmp_path / "flags.yaml"), *flags]
    (tmp_path / "here").mkdir()
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "train.py"), *flags]
    ran = subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    files = [file for folder in ("out", "here") for file in (tmp_path / folder).rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"arguments.json", "adapter_config.json"} <= names
    assert any(name.startswith("events.out") for name in names)
    assert ("wandb" in trackers) == any(name.endswith(".wandb") for name in names)
    written = {str(file): file.read_bytes() for file in files} | {"stdout": ran.stdout, "stderr": ran.stderr}
    for secret_text in (FLAG, KEY, TOKEN):
        assert [name for name, content in written.items() if secret_text.encode() in content] == []
