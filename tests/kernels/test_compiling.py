"""Kernels are compiled together, not launched, and ready afterwards: compiled for a GPU, which need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = """
import sys, threading
import torch
from fake_device import compiled, launched, threads

from lightllm.kernels.triton import norm
from lightllm.kernels.triton.compiling import compiled_together
from lightllm.kernels.triton.linear_choice import Vector
from lightllm.kernels.triton.linear_op import multiply_vector

def step(choice):
    for layer in range(3):
        for dtype in (torch.bfloat16, torch.float16):
            x = torch.ones(4, 64, dtype=dtype)
            out = norm.rms_norm(x, x[0], 1e-5)
        multiply_vector(x, torch.ones(64, 64, dtype=dtype), None, out, choice)

with compiled_together(), torch.inference_mode():
    step(Vector(2, 64, 4))
assert not launched, launched
names = sorted(name for name, _ in compiled)
assert len(names) == 3 and len(set(names)) == 2, names
assert "sympy" not in sys.modules, "imports that take seconds"
assert threads and threading.main_thread() not in threads, threads

step(Vector(2, 64, 4))
assert len(compiled) == 3, "compiled again"
assert len(launched) == 9, launched

with compiled_together():                 # nothing to do
    step(Vector(2, 64, 4))
try:
    with compiled_together():
        step(Vector(2, 48, 4))            # not a power of two: does not compile
        raise KeyError
except KeyError:
    pass
assert len(launched) == 9
try:
    step(Vector(2, 48, 4))
except Exception as error:
    assert "power of 2" in str(error), error
else:
    raise AssertionError("compiled what cannot be")
with compiled_together():                 # and the next time works as ever
    step(Vector(1, 64, 4))
assert len(launched) > 9
"""


THREADS = """
import threading
import torch
from fake_device import launched

from lightllm.kernels.triton import norm
from lightllm.kernels.triton.compiling import compiled_together, only_compiling

x = torch.ones(4, 64, dtype=torch.float16)
told = []

def launch():
    told.append(only_compiling())
    norm.rms_norm(x, x[0], 1e-5)

def elsewhere(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread

def compile_too():
    with compiled_together():
        launch()

with compiled_together():
    launch()
    elsewhere(launch).join()
    assert len(launched) == 1, "another thread's kernels run"
    waiting = elsewhere(compile_too)
waiting.join()
assert len(launched) == 1
launch()
assert len(launched) == 2, "and all do again afterwards"
assert told == [True, False, True, False], told
"""


@pytest.mark.parametrize("script", [SCRIPT, THREADS], ids=["one thread", "several threads"])
def test_compiled_together(script: str, tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_every_kernel_compiles_for_gpus_that_are_not_here(capability: int, tmp_path: Path) -> None:
    """The interpreter accepts more than the compiler does."""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent.parent), str(here)]),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_INTERPRET": "0",
        "FAKE_CAPABILITY": str(capability),
    }
    command = [sys.executable, str(here / "compile_all.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) > 20
