"""The doors: each in a process of its own, as a user or a tool would open it, away from the repository's folder.

A process costs seconds (the import of torch, transformers and peft), so one of each kind is fast and the rest are slow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

ADAPTS = """
from peft import LoraConfig, LoraMoeConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), LoraConfig(lora_nums=2))
assert type(model.peft_config["default"]) is LoraMoeConfig, model.peft_config
import loramoe, peft, sys
assert peft.__file__.endswith(("site-packages/peft/__init__.py",)), peft.__file__
assert LoraConfig.__module__ == "peft.tuners.lora.config"
print("adapted")
"""
DECLARES = """
import inspect
from transformers import LlamaForCausalLM
assert "task_types" in inspect.signature(LlamaForCausalLM.forward).parameters
print("declared")
"""


def run(code: str, tmp_path: Path, *options: str, pythonpath: str = "", **environment: str) -> str:
    """Run a script in a process whose path does not hold the repository; its output, or its error as an exception."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    env = {**os.environ, "PYTHONPATH": pythonpath, **environment}
    done = subprocess.run(
        [sys.executable, *options, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout


def insert(code: str, before: str = "") -> str:
    return f"{before}\nimport sys\nsys.path.insert(0, {str(REPO)!r})\n{code}"


def test_python_path(tmp_path: Path) -> None:
    assert run(ADAPTS + DECLARES, tmp_path, pythonpath=str(REPO)).split() == ["adapted", "declared"]


@pytest.mark.slow
def test_sys_path_first_thing(tmp_path: Path) -> None:
    assert run(insert(ADAPTS + DECLARES), tmp_path).split() == ["adapted", "declared"]


def test_sys_path_after_transformers(tmp_path: Path) -> None:
    """OpenCompass's way: transformers has been imported by then, peft has not."""
    assert "adapted" in run(insert(ADAPTS, before="import transformers; transformers.AutoModel"), tmp_path)


def test_sys_path_after_peft(tmp_path: Path) -> None:
    """Too late for any overlay: `import loramoe` registers with the peft that is there."""
    assert "adapted" in run(insert("import loramoe\n" + ADAPTS, before="import peft"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import loramoe; import peft", "import peft; import loramoe"])
def test_import_loramoe_alone(order: str, tmp_path: Path) -> None:
    """As after `pip install`: the package can be imported, the overlays cannot."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "loramoe").symlink_to(REPO / "loramoe")
    assert "adapted" in run(order + "\n" + ADAPTS, tmp_path, pythonpath=str(tmp_path / "site"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "loramoe",
        "loramoe.config",
        "loramoe.layer",
        "loramoe.hooks",
        "loramoe.model",
        "loramoe.compat",
        "loramoe.legacy",
    ],
)
def test_any_module_of_ours_may_come_first(module: str, tmp_path: Path) -> None:
    name = {"loramoe.compat": "register", "loramoe.legacy": "TunerBase"}.get(module, "LoraMoeConfig")
    code = f"from {module} import {name}\n{ADAPTS}"
    assert "adapted" in run(code, tmp_path, pythonpath=str(REPO))


def test_import_loramoe_is_cheap(tmp_path: Path) -> None:
    code = "import loramoe, sys; print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules])"
    assert run(code, tmp_path, pythonpath=str(REPO)).strip() == "[]"


@pytest.mark.slow
def test_the_transformers_overlay_does_not_import_peft(tmp_path: Path) -> None:
    code = "import transformers, sys; transformers.LlamaForCausalLM; print('peft' in sys.modules)"
    assert run(code, tmp_path, pythonpath=str(REPO)).strip() == "False"


def test_reload_finds_the_installed_library_and_extends_it_again(tmp_path: Path) -> None:
    code = """
    import importlib, peft
    first = peft.__file__
    del peft.LoraMoeConfig
    importlib.reload(peft)
    assert peft.__file__ == first and "site-packages" in first, peft.__file__
    from peft import LoraMoeConfig, LoraConfig
    assert type(LoraConfig(lora_nums=2)) is LoraMoeConfig
    print("reloaded")
    """
    assert "reloaded" in run(code, tmp_path, pythonpath=str(REPO))


@pytest.mark.slow
def test_the_trainer_imports_peft_through_the_door(tmp_path: Path) -> None:
    code = "from transformers import Trainer\nimport sys\nassert 'peft' in sys.modules\n" + ADAPTS
    assert "adapted" in run(code, tmp_path, pythonpath=str(REPO))


@pytest.mark.slow
def test_metadata_and_submodules_are_the_installed_ones(tmp_path: Path) -> None:
    code = """
    import importlib.metadata, importlib.resources, pickle
    import peft, transformers, peft.tuners.lora, transformers.models.llama.modeling_llama as llama
    assert importlib.metadata.version("peft") == peft.__version__
    assert importlib.metadata.version("transformers") == transformers.__version__
    assert peft.__spec__.origin == peft.__file__ and importlib.resources.files("peft").is_dir()
    assert "site-packages" in peft.tuners.lora.__file__ and "site-packages" in llama.__file__
    assert pickle.loads(pickle.dumps(peft.LoraConfig)) is peft.LoraConfig
    print("installed")
    """
    assert "installed" in run(code, tmp_path, pythonpath=str(REPO))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_worker_processes(method: str, tmp_path: Path) -> None:
    code = f"""
    import multiprocessing, sys
    sys.path.insert(0, {str(REPO)!r})
    from peft import LoraMoeConfig

    def work(config):
        from peft import LoraConfig
        return type(LoraConfig(lora_nums=config.lora_nums)).__name__

    if __name__ == "__main__":
        with multiprocessing.get_context({method!r}).Pool(1) as pool:
            print(pool.map(work, [LoraMoeConfig(lora_nums=3)]))
    """
    assert "['LoraMoeConfig']" in run(code, tmp_path)


@pytest.mark.slow
def test_torchrun_children(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(ADAPTS + DECLARES)
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.count("adapted") == 2, done.stderr


def test_a_thread_that_imports_at_the_same_time_waits(tmp_path: Path) -> None:
    code = """
    import threading
    failures = []
    def load():
        try:
            from peft import LoraMoeConfig, get_peft_model
        except Exception as error:
            failures.append(error)
    threads = [threading.Thread(target=load) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    print(failures)
    """
    assert run(code, tmp_path, pythonpath=str(REPO)).strip() == "[]"


@pytest.mark.parametrize("library", ["peft", "transformers"])
def test_a_missing_library_says_what_to_install(library: str, tmp_path: Path) -> None:
    """`-S` leaves site-packages out, so that nothing is installed as far as this process can see."""
    with pytest.raises(
        RuntimeError, match=rf"extends the installed {library}, and there is none .* pip install {library}"
    ):
        run(f"import {library}", tmp_path, "-S", pythonpath=str(REPO))


def test_a_missing_peft_is_said_at_first_use(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "loramoe").symlink_to(REPO / "loramoe")
    with pytest.raises(RuntimeError, match=r"loramoe extends peft, which is not installed. Run: pip install peft"):
        run("import loramoe; loramoe.LoraMoeConfig", tmp_path, "-S", pythonpath=str(tmp_path / "site"))


def test_two_clones_on_the_path_find_the_installed_library(tmp_path: Path) -> None:
    """Where an installed loramoe lies beside it, too. `-S`: the only peft is one that costs no time to import."""
    clones, site = [tmp_path / "one", tmp_path / "other"], tmp_path / "site"
    for folder in (*clones, site):
        (folder / "loramoe").mkdir(parents=True)
        shutil.copy(REPO / "loramoe" / "overlay.py", folder / "loramoe")
    for clone in clones:
        shutil.copytree(REPO / "peft", clone / "peft")
    (site / "peft").mkdir()
    (site / "peft" / "__init__.py").write_text("found = 'the installed one'")
    code = "import importlib, peft\nprint(peft.found, importlib.reload(peft).__file__)"
    printed = run(code, tmp_path, "-S", pythonpath=os.pathsep.join(map(str, [*clones, site])))
    assert printed.strip() == f"the installed one {site / 'peft' / '__init__.py'}"


def test_a_library_that_fails_to_import_fails_as_itself(tmp_path: Path) -> None:
    """The error comes through as it is, and nothing half-way stays in sys.modules."""
    fake = tmp_path / "site" / "peft"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise OSError('disk on fire')")
    code = f"""
    import sys
    sys.path.insert(0, {str(tmp_path / "site")!r})
    sys.path.insert(0, {str(REPO)!r})
    for _ in range(2):
        try:
            import peft
        except OSError as error:
            print(error, "peft" in sys.modules)
    """
    assert run(code, tmp_path).split("\n")[:2] == ["disk on fire False"] * 2


def test_an_unknown_name_is_an_attribute_error() -> None:
    import loramoe

    with pytest.raises(AttributeError, match="module 'loramoe' has no attribute 'Lora'"):
        loramoe.Lora  # noqa: B018
    assert {"LoraMoeConfig", "last_balance"} <= set(dir(loramoe))
