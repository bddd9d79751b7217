"""Triton's mixture: only where it is asked for, refused where it cannot run; its kernels compile without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loramoe.config import LoraMoeConfig
from loramoe.layer import LoraMoeLayer, use_implementation
from loramoe.mixture import IMPLEMENTATIONS, add_triton, triton_fused
from loramoe.mixture.dropout import draw_seed
from loramoe.mixture.fused import Plan

KERNEL_TESTS = Path(__file__).with_name("test_triton_kernels.py")
ROOT = KERNEL_TESTS.parents[2]


def layer_of(**options: Any) -> LoraMoeLayer:
    return LoraMoeLayer(nn.Linear(6, 10), "default", LoraMoeConfig(lora_nums=3, r=2, **options))


def test_it_is_one_of_the_implementations_and_not_the_one_that_runs_unasked() -> None:
    assert IMPLEMENTATIONS["triton"] is add_triton
    assert layer_of().implementation != "triton"


def test_without_triton_it_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    layer = layer_of()
    before = layer.implementation
    with pytest.raises(ImportError, match=r'implementation "triton" needs the package triton, .* or choose "fused"'):
        use_implementation(layer, "triton")
    assert layer.implementation == before


def test_without_triton_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    layer = layer_of()
    layer.implementation = "triton"
    with pytest.raises(ImportError, match=r"`pip install triton`"):
        layer(torch.randn(2, 6))


def test_a_cpu_is_refused() -> None:
    pytest.importorskip("triton", reason="needs the package triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("under its interpreter Triton runs on a CPU")
    layer = layer_of()
    use_implementation(layer, "triton")
    with pytest.raises(ValueError, match=r"runs on a CUDA device; got x on cpu\. Move the model and its inputs there"):
        layer(torch.randn(2, 6))


@pytest.mark.slow
def test_the_kernels_under_the_interpreter() -> None:
    """In a process of its own: the interpreter has to be chosen before anything imports triton."""
    pytest.importorskip("triton", reason="needs the package triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(KERNEL_TESTS)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout


class Compiler:
    """Stands in the place of a kernel: compiles it for what it is called with, and runs nothing."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability
        self.shared_bytes: list[int] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *args: Any, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        given = self.kernel.signature.bind(*args, **constants).arguments
        constant = {param.name for param in self.kernel.params if param.is_constexpr or given[param.name] is None}
        types = {name: "constexpr" if name in constant else self.type_of(name, value) for name, value in given.items()}
        places = {(index,): given[name] for index, name in enumerate(given) if name in constant}
        source = ASTSource(self.kernel, types, places)
        compiled = triton.compile(source, target=GPUTarget("cuda", self.capability, 32))
        assert "mma" in compiled.asm["ptx"]  # its products are for tensor cores
        self.shared_bytes.append(compiled.metadata.shared)

    def type_of(self, name: str, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[value.dtype]
        return "fp32" if isinstance(value, float) else {"N": "i32", "seed": "i64"}[name]


@pytest.mark.parametrize(("capability", "dtype"), [(80, torch.float32), (90, torch.bfloat16)])
def test_the_kernels_compile_without_a_gpu(
    capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For the linears of Llama-2-7B; and into the shared memory that a program has on any GPU since Ampere, 99 kB."""
    pytest.importorskip("triton", reason="needs the package triton")
    from loramoe.mixture import triton_kernels

    if triton_kernels.INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compilers = [
        Compiler(getattr(triton_kernels, name), capability)
        for name in ("project", "backward_of_y", "backward_of_gates", "backward_of_x")
    ]
    for compiler in compilers:
        monkeypatch.setattr(triton_kernels, compiler.kernel.fn.__name__, compiler)
    x, router, A = (torch.empty(rows, 4096, dtype=dtype, device="meta") for rows in (2048, 8, 32))
    grad_y, B = (
        torch.empty(rows, columns, dtype=dtype, device="meta") for rows, columns in ((2048, 11008), (11008, 32))
    )
    plan = Plan(scaling=2.0, p=0.05, seed=draw_seed(), dtype=dtype)
    hidden_NK, gates_NE, _ = triton_fused._project(x, router, A, plan)
    grad_gated_PNK, _ = triton_fused._backward_of_y(plan, grad_y, B, hidden_NK, gates_NE)
    grads = triton_fused._backward_of_gates(plan, grad_gated_PNK, gates_NE, hidden_NK, gates_NE)
    for needs_x in (True, False):
        triton_fused._backward_of_x(plan, x, router, A, *grads, needs_x)
    assert [len(compiler.shared_bytes) for compiler in compilers] == [1, 1, 1, 2]
    assert max(max(compiler.shared_bytes) for compiler in compilers) <= 99 * 1024
