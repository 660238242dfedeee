"""A CUDA device that is not there: Triton compiles for it, and launches do nothing. Importing this makes it active."""

from __future__ import annotations

import os
import threading
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

CAPABILITY = int(os.environ.get("FAKE_CAPABILITY", "90"))
SHARED_BYTES = {80: 163, 90: 227}.get(CAPABILITY, 99) << 10
"""What a program may have of a multiprocessor's."""
launched: list[str] = []
compiled: list[tuple[str, bool]] = []
"""Kernels, and whether they came from the cache."""
threads: set[threading.Thread] = set()
"""Those that loaded a kernel."""


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, *_: Any) -> tuple[object, object, int, int, int]:
        threads.add(threading.current_thread())
        return object(), object(), 32, 0, 1024


class _Launcher:
    def __init__(self, src: Any, metadata: Any) -> None:
        self.name = src.fn.__name__

    def __call__(self, *args: Any) -> None:
        launched.append(self.name)


class _Driver(DriverBase):
    utils, launcher_cls = _Utils(), _Launcher
    is_active = classmethod(lambda cls: True)
    map_python_to_cpp_type = get_active_torch_device = get_benchmarker = None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


_Driver.__abstractmethods__ = frozenset()
triton.runtime.driver.set_active(_Driver())
triton.knobs.compilation.listener = lambda *, src, cache_hit, **_: compiled.append((src.fn.__name__, cache_hit))
