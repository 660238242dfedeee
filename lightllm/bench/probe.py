"""What this machine can do, measured in a few seconds: memory read bandwidth and the rate of matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear

from lightllm.bench.bounds import Machine
from lightllm.device.device import Device, free_memory

_CPU_BYTES = 512 << 20
_CUDA_BYTES = 4 << 30
_REPEATS = 5
_LEAST_SECONDS = 0.3
"""A device that was loading weights takes a while to its full clock."""


def measure_machine(device: Device, dtype: torch.dtype) -> Machine:
    """The best of several runs: a bound must not be lower than what was ever seen. What it takes, it gives back."""
    with torch.inference_mode():
        machine = Machine(_bandwidth(device), _peak(device, dtype))
    if device.is_cuda:
        torch.cuda.empty_cache()
    return machine


def _bandwidth(device: Device) -> float:
    """Bytes per second of reading memory once, by the faster of a sum and a matrix-vector product."""
    size = min(_CUDA_BYTES if device.is_cuda else _CPU_BYTES, free_memory(device) // 2)
    matrix = torch.ones(size // (4 * 4096), 4096, device=device.torch_device)
    vector = torch.ones(4096, device=device.torch_device)
    fastest = min(_fastest(device, matrix.sum), _fastest(device, lambda: matrix @ vector))
    return matrix.nbytes / fastest


def _peak(device: Device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product, by the faster of torch's two."""
    size = 8192 if device.is_cuda else 1536
    a = torch.ones(size, size, dtype=dtype, device=device.torch_device)
    b = torch.ones(size, size, dtype=dtype, device=device.torch_device)
    return 2 * size**3 / min(_fastest(device, lambda: a @ b), _fastest(device, lambda: linear(a, b)))


def _fastest(device: Device, work: Callable[[], object]) -> float:
    work()
    times, give_up_at = [_timed(device, work)], time.perf_counter() + _LEAST_SECONDS
    while len(times) < _REPEATS or time.perf_counter() < give_up_at:
        times.append(_timed(device, work))
    return min(times)


def _timed(device: Device, work: Callable[[], object]) -> float:
    _wait(device)
    begun = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: Device) -> None:
    if device.is_cuda:
        torch.cuda.synchronize(device.torch_device)
