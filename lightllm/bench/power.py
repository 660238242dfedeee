"""What a GPU draws while it works, and at which clock: at its power limit it slows down, however good the kernels are.

Read through the driver's management library (NVML) by ctypes; where there is none, nothing is told.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lightllm.device.device import Device

SAMPLE_SECONDS = 0.02
SHORTEST_SECONDS = 1.0
"""The energy counter moves some ten times a second, so of shorter runs nothing is told."""
_SM_CLOCK = 1


@dataclass(frozen=True, slots=True)
class PowerUse:
    """Over a run: mean watts drawn of the limit's, mean clock of the multiprocessors of the highest, in MHz."""

    watts: float
    limit_watts: float
    clock: float
    highest_clock: float

    def __str__(self) -> str:
        return f"{self.watts:.0f} of {self.limit_watts:.0f} W"


class PowerMeter:
    """Reads one GPU's energy counter and clocks. Raises OSError where one of them cannot be read."""

    def __init__(self, device: torch.device) -> None:
        self._lib = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        self._call("nvmlDeviceGetHandleByUUID", name, ctypes.byref(self._handle))
        self.limit_watts = self._read("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint()) / 1e3
        self.highest_clock = self._read("nvmlDeviceGetMaxClockInfo", ctypes.c_uint(), _SM_CLOCK)
        self.joules()
        self.clock()

    def joules(self) -> float:
        """What the GPU has drawn since the driver was loaded."""
        return self._read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong()) / 1e3

    def clock(self) -> float:
        return self._read("nvmlDeviceGetClockInfo", ctypes.c_uint(), _SM_CLOCK)

    def _read(self, function: str, value: Any, *arguments: int) -> float:
        self._call(function, self._handle, *arguments, ctypes.byref(value))
        return float(value.value)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._lib, function)(*arguments)
        if status:
            raise OSError(f"{function} failed with status {status}")


def find_power_meter(device: Device) -> PowerMeter | None:
    """The meter of a GPU; None where there is nothing to read."""
    try:
        return PowerMeter(device.torch_device) if device.is_cuda else None
    except (OSError, AttributeError):  # no driver library, or one that knows less
        return None


@dataclass(slots=True)
class Metering:
    """What was drawn while `metered` ran: `use` once it ended; None without a meter or after a short run."""

    use: PowerUse | None = None


@contextmanager
def metered(meter: PowerMeter | None) -> Iterator[Metering]:
    """Measure what happens within."""
    found = Metering()
    if meter is None:
        yield found
        return
    clocks, done = [meter.clock()], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            clocks.append(meter.clock())

    thread = threading.Thread(target=watch, name="power meter", daemon=True)
    begun, joules = time.perf_counter(), meter.joules()
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    seconds, joules = time.perf_counter() - begun, meter.joules() - joules
    if seconds >= SHORTEST_SECONDS:
        clock = sum(clocks) / len(clocks)
        found.use = PowerUse(joules / seconds, meter.limit_watts, clock, meter.highest_clock)
