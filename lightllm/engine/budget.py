"""How many tokens the KV pool holds, from measured memory, with the reason in words; what is said when memory ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lightllm.config.settings import EngineSettings
from lightllm.device.device import Device, free_memory, total_memory
from lightllm.errors import OutOfMemory
from lightllm.kvcache.pool import KvLayout

CPU_FRACTION = 0.5
CPU_MOST_BYTES = 4 << 30
CUDA_FRACTION = 0.9
FEWEST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """Slots of the pool and why so many."""

    tokens: int
    reason: str


@contextmanager
def room_for(what: str, advice: str) -> Iterator[None]:
    """Turn an allocation that fails within, on host or device, into OutOfMemory: what had no room, what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has a class for the device's memory only, and a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"no room for {what}; {advice}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on host or device: torch and CUDA say so in several ways."""
    words = ("out of memory", "can't allocate memory", "alloc_failed")
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in text for word in words)


def plan_pool(layout: KvLayout, settings: EngineSettings, device: Device, most_useful: int, working: int = 0) -> Budget:
    """Slots for the KV pool, weights being loaded already and steps needing `working` bytes.

    `most_useful` is what all requests that may run could ever fill. Raises OutOfMemory naming the flag to change.
    """
    if settings.max_total_tokens is not None:
        return Budget(settings.max_total_tokens, "asked for with --max-total-tokens")
    room, rule = _room(settings, device, working)
    tokens = room // layout.bytes_per_token
    if tokens < FEWEST_TOKENS:
        raise OutOfMemory(
            f"no room for a KV pool: {room / 2**20:.0f} MiB ({rule}) hold {max(tokens, 0)} tokens of "
            f"{layout.bytes_per_token} bytes; free memory, raise --memory-fraction or lower --max-total-tokens"
        )
    if tokens > most_useful:
        return Budget(most_useful, f"all that --max-running requests of --max-model-len can use ({rule})")
    return Budget(tokens, f"{layout.bytes_per_token} bytes per token; {rule}")


def _room(settings: EngineSettings, device: Device, working: int) -> tuple[int, str]:
    """Bytes the pool may take, and the rule that says so."""
    free = free_memory(device)
    if device.is_cuda:
        fraction = settings.memory_fraction or CUDA_FRACTION
        reserved = int(total_memory(device) * (1 - fraction))
        rule = f"{free / 2**30:.1f} GiB free less {1 - fraction:.0%} of the device"
        rule += f" and {working / 2**30:.2f} GiB for steps and their graphs, by a measured step"
        return free - reserved - working, rule
    fraction = settings.memory_fraction or CPU_FRACTION
    room = int(free * fraction)
    if settings.memory_fraction is None and room > CPU_MOST_BYTES:
        return CPU_MOST_BYTES, f"at most {CPU_MOST_BYTES >> 30} GiB unless --memory-fraction is given"
    return room, f"{fraction:.0%} of {free / 2**30:.1f} GiB free"
