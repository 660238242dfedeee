"""Finding the device and reading its memory. It decides nothing about models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lightllm.config.settings import DeviceName
from lightllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """The device that serves: its torch handle, its name, and its compute capability (0, 0 on a CPU)."""

    torch_device: torch.device
    name: str
    capability: tuple[int, int] = (0, 0)

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"


def find_device(wanted: DeviceName) -> tuple[Device, str]:
    """The device that `wanted` means on this machine, and why. Raises ConfigError when it is not there."""
    if wanted == "cpu":
        return _cpu(), "asked for"
    reason = _why_no_cuda()
    if reason is None:
        return _cuda(), "asked for" if wanted == "cuda" else "a usable GPU is present"
    if wanted == "cuda":
        raise ConfigError(f"device cuda is not usable: {reason}; install a CUDA build of torch or use --device cpu")
    return _cpu(), reason


def free_memory(device: Device) -> int:
    """Bytes that can still be taken on the device."""
    if device.is_cuda:
        free, _ = torch.cuda.mem_get_info(device.torch_device)
        return int(free)
    return _available_host_memory()


def total_memory(device: Device) -> int:
    """Bytes the device has in all."""
    if device.is_cuda:
        _, total = torch.cuda.mem_get_info(device.torch_device)
        return int(total)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_cores() -> int:
    """Processor cores this process may use, a container's share rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, *map(_cgroup_cores, _own_groups()))


def _cpu() -> Device:
    return Device(torch.device("cpu"), _processor_name())


def _cuda() -> Device:
    index = torch.cuda.current_device()
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    return Device(torch.device("cuda", index), name, capability)


def _why_no_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device or the driver is too old"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} has compute capability below 8.0"
    return None


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "CPU"


def _available_host_memory() -> int:
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return min(int(line.split()[1]) * 1024, *map(_cgroup_room, _own_groups()))
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _own_groups(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The control group of this process and those that it is in (cgroup v2), whose limits all hold: a container sees
    its own as the root, a service or a batch job lies some levels below."""
    try:
        named = [line[3:].strip("/") for line in membership.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        named = []
    own = root.joinpath(*named)
    return [own, *(group for group in own.parents if group.is_relative_to(root))]


def _cgroup_cores(group: Path) -> int:
    """Cores' worth of time that a control group's quota gives, rounded up; unlimited without one."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no group, or "max"
        return 1 << 30


def _cgroup_room(group: Path) -> int:
    """Bytes left under a control group's memory limit, counting what is kept of files as free, as the kernel does when
    it is needed; unlimited when there is none."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        kept = int(parts["inactive_file"]) + int(parts["active_file"])
    except (OSError, ValueError, KeyError):
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used + kept)
