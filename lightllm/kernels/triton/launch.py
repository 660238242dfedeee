"""What a launch needs to know about the device it goes to. It knows no kernel.

Programmatic dependent launch (compute capability 9.0): a kernel says early that its successor may start; the
successor loads what no kernel writes (weights), then waits for everything before it to be complete. Two rules keep it
sound, and every kernel here follows them: `gdc_wait` runs in every program before any early exit, and nothing but
weights and arrays copied before the step is read above it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Launcher:
    """Number of multiprocessors, bytes of shared memory a program may have, whether dependent launch is used, and
    whether kernels may be written for Hopper's warp groups (compute capability 9.0 alone has those instructions)."""

    num_processors: int
    shared_bytes: int
    dependent: bool
    hopper: bool

    @property
    def options(self) -> dict[str, bool]:
        """Keyword arguments for a launch: `PDL` for the kernel, `launch_pdl` for the driver."""
        return {"PDL": True, "launch_pdl": True} if self.dependent else {"PDL": False}


_INTERPRETED = Launcher(num_processors=2, shared_bytes=96 << 10, dependent=False, hopper=False)


def launcher_for(device: torch.device) -> Launcher:
    """The launcher of the device a tensor lies on; the CPU means Triton's interpreter."""
    return _cuda_launcher(device.index or 0) if device.type == "cuda" else _INTERPRETED


@cache
def _cuda_launcher(index: int) -> Launcher:
    properties = torch.cuda.get_device_properties(index)
    wanted = os.environ.get("LIGHTLLM_DEPENDENT_LAUNCH", "1") != "0"
    shared = int(getattr(properties, "shared_memory_per_block_optin", 96 << 10))  # not in every torch's stubs
    dependent = properties.major >= 9 and wanted
    return Launcher(properties.multi_processor_count, shared, dependent, hopper=properties.major == 9)


def next_power_of_2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
