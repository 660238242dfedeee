"""Kernels are compiled together, not launched, and ready afterwards: compiled for a GPU, which need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = """
import threading
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

launched, compiled, threads = [], [], set()

class Utils:
    def get_device_properties(self, device):
        return {"max_shared_mem": 227 << 10}
    def load_binary(self, name, kernel, shared, device):
        threads.add(threading.current_thread())
        return object(), object(), 32, 0, 1024

class Launcher:
    def __init__(self, src, metadata):
        self.name = src.fn.__name__
    def __call__(self, *args):
        launched.append(self.name)

class Driver(DriverBase):
    utils, launcher_cls = Utils(), Launcher
    is_active = classmethod(lambda cls: True)
    map_python_to_cpp_type = get_active_torch_device = get_benchmarker = None
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

Driver.__abstractmethods__ = frozenset()
triton.runtime.driver.set_active(Driver())
triton.knobs.compilation.listener = lambda *, src, cache_hit, **_: compiled.append((src.fn.__name__, cache_hit))

from lightllm.kernels.triton import norm
from lightllm.kernels.triton.compiling import compiled_together
from lightllm.kernels.triton.linear_choice import Vector
from lightllm.kernels.triton.linear_op import multiply_vector

def step(choice):
    for layer in range(3):
        for dtype in (torch.bfloat16, torch.float16):
            x = torch.ones(4, 64, dtype=dtype)
            out = norm.add_rms_norm(x, x.clone(), x[0], 1e-5)
        multiply_vector(x, torch.ones(64, 64, dtype=dtype), None, out, choice)

with compiled_together(), torch.inference_mode():
    step(Vector(2, 64, 4))
    x = torch.empty(1 << 20, dtype=torch.int32)
    assert not any(t.any() for t in (x, torch.empty_like(x), x.new_empty(1 << 20), torch.empty_strided((9,), (7,))))
assert not launched, launched
names = sorted(name for name, _ in compiled)
assert len(names) == 3 and len(set(names)) == 2, names
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


def test_compiled_together(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
