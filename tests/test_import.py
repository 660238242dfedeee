"""`import lightllm` is light: no torch, no Transformers; the public names resolve on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lightllm

HEAVY = ("torch", "transformers", "numpy", "tokenizers", "starlette")


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    loaded = modules_after("import lightllm; lightllm.__version__")
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "module",
    ["scheduler.scheduler", "memory.token_memory", "text.tokenizer", "workers.detokenizer", "server.app", "launch"],
)
def test_floors_without_torch(module: str) -> None:
    """All but the engine and what is above it; neither the supervisor nor a frontend ever loads torch."""
    loaded = modules_after(f"import lightllm.{module}")
    assert not loaded & {"torch", "transformers"}


@pytest.mark.parametrize("module", ["workers.engine", "workers.entries", "kernels.triton.backend"])
def test_the_engine_loads_little_beside_torch(module: str) -> None:
    """Start-up is mostly imports: beside torch the engine's process has three libraries, and Triton on a GPU."""
    before = modules_after("import torch")
    added = {name.split(".")[0] for name in modules_after(f"import torch, lightllm.{module}") - before}
    libraries = added - set(sys.stdlib_module_names) - {name for name in added if name.startswith("_")}
    assert libraries <= {"lightllm", "numpy", "msgspec", "safetensors", "triton"}
    heavy = {"torch._dynamo", "torch._inductor", "torch.onnx", "sympy"}
    assert not heavy & (modules_after(f"import lightllm.{module}") - before)


def test_serving_never_loads_transformers() -> None:
    assert "transformers" not in modules_after("from lightllm import LLM; LLM")


def test_public_names() -> None:
    for name in lightllm.__all__:
        assert getattr(lightllm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LLMM'"):
        lightllm.LLMM  # noqa: B018
