"""Every entry point in a process of its own, as a user or a tool would start it, outside of the repository.

A process costs seconds (the import of torch, transformers and peft), so one of each kind is fast and the rest are slow.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.helpers import run_python as run

REPO = Path(__file__).resolve().parents[2]

ADAPTS = """
from peft import LoraConfig, LoraMoeConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), LoraConfig(lora_nums=2))
assert type(model.peft_config["default"]) is LoraMoeConfig, model.peft_config
import inspect, loramoe, peft, sys
assert peft.__file__.endswith(("site-packages/peft/__init__.py",)), peft.__file__
assert LoraConfig.__module__ == "peft.tuners.lora.config"
assert "task_types" in inspect.signature(LlamaForCausalLM.forward).parameters
print("adapted")
"""


def insert(code: str, before: str = "") -> str:
    return f"{before}\nimport sys\nsys.path.insert(0, {str(REPO)!r})\n{code}"


@pytest.fixture
def site(tmp_path: Path) -> str:
    """A folder for the path as after `pip install`: the package can be imported, the overlays cannot."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "loramoe").symlink_to(REPO / "loramoe")
    return str(tmp_path / "site")


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(insert(ADAPTS), id="first"),
        pytest.param(
            insert(ADAPTS, "import transformers; transformers.AutoModel"),
            id="after transformers",
            marks=pytest.mark.slow,
        ),
        pytest.param(insert("import loramoe\n" + ADAPTS, "import peft"), id="after peft"),
        pytest.param(insert("from transformers import Trainer\n" + ADAPTS), marks=pytest.mark.slow, id="after Trainer"),
    ],
)
def test_sys_path(code: str, tmp_path: Path) -> None:
    assert "adapted" in run(code, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import loramoe; import peft", "import peft; import loramoe"])
def test_import_loramoe_alone(order: str, tmp_path: Path, site: str) -> None:
    assert "adapted" in run(order + "\n" + ADAPTS, tmp_path, path=site)


@pytest.mark.slow
def test_every_module_may_be_imported_first(tmp_path: Path, site: str) -> None:
    """Each in a child of a process that has imported neither peft nor anything of ours."""
    folders = ("balance", "compat", "ops", "tuner")
    names = [f"loramoe.{folder}.{file.stem}" for folder in folders for file in (REPO / "loramoe" / folder).glob("*.py")]
    code = f"""
    import importlib, os, sys, torch, transformers.modeling_utils
    for name in {names}:
        child = os.fork()
        if child == 0:
            importlib.import_module(name.removesuffix(".__init__"))
            if "peft" in sys.modules:
                from peft import LoraMoeConfig
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(name)
    """
    assert run(code, tmp_path, path=site) == ""


def test_import_loramoe_is_cheap(tmp_path: Path, site: str) -> None:
    code = "import loramoe, sys; print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules])"
    assert run(code, tmp_path, path=site).strip() == "[]"


@pytest.mark.slow
def test_reload(tmp_path: Path) -> None:
    code = """
    import importlib, importlib.metadata, importlib.resources, pickle, peft, peft.tuners.lora
    first = peft.__file__
    del peft.LoraMoeConfig
    importlib.reload(peft)
    assert peft.__file__ == peft.__spec__.origin == first and "site-packages" in first, peft.__file__
    from peft import LoraMoeConfig, LoraConfig
    assert type(LoraConfig(lora_nums=2)) is LoraMoeConfig
    assert importlib.metadata.version("peft") == peft.__version__ and importlib.resources.files("peft").is_dir()
    assert "site-packages" in peft.tuners.lora.__file__ and pickle.loads(pickle.dumps(LoraConfig)) is LoraConfig
    print("reloaded")
    """
    assert "reloaded" in run(code, tmp_path, path=str(REPO))


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
def test_threads_that_import_at_the_same_time(tmp_path: Path) -> None:
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
    assert run(code, tmp_path, path=str(REPO)).strip() == "[]"


@pytest.mark.parametrize("library", ["peft", "transformers"])
def test_a_missing_library(library: str, tmp_path: Path) -> None:
    """`-S` leaves site-packages out, so that nothing is installed as far as this process can see."""
    with pytest.raises(RuntimeError, match=rf"extends {library}, which is not installed. Run: pip install {library}"):
        run(f"import {library}", tmp_path, "-S", path=str(REPO))


def test_two_clones_on_the_path(tmp_path: Path) -> None:
    """Where an installed loramoe lies beside them, too. `-S`: the only peft is one that costs no time to import."""
    clones, site = [tmp_path / "one", tmp_path / "other"], tmp_path / "site"
    for folder in (*clones, site):
        (folder / "loramoe" / "compat").mkdir(parents=True)
        shutil.copy(REPO / "loramoe" / "compat" / "overlay.py", folder / "loramoe" / "compat")
    for clone in clones:
        shutil.copytree(REPO / "peft", clone / "peft")
    (site / "peft").mkdir()
    (site / "peft" / "__init__.py").write_text("found = 'the installed one'")
    code = "import importlib, peft\nprint(peft.found, importlib.reload(peft).__file__)"
    printed = run(code, tmp_path, "-S", path=os.pathsep.join(map(str, [*clones, site])))
    assert printed.strip() == f"the installed one {site / 'peft' / '__init__.py'}"


def test_public_names() -> None:
    import loramoe

    for name in loramoe.__all__:
        assert getattr(loramoe, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'loramoe' has no attribute 'Lora'"):
        loramoe.Lora  # noqa: B018
    with pytest.warns(FutureWarning, match=r"loramoe\.BalanceStats"):
        assert loramoe.Balance is loramoe.BalanceStats
