"""`lightllm env`: what is installed here, which devices there are, and which kernels would serve a model and why."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import lightllm
from lightllm.cli.flags import ModelFlags, parse
from lightllm.config.locate import find_model
from lightllm.config.settings import EngineSettings

REQUIRED = (
    *("torch", "numpy", "safetensors", "tokenizers", "jinja2", "msgspec", "starlette", "uvicorn", "uvloop"),
    *("httptools", "pyzmq", "prometheus-client", "huggingface-hub", "tyro", "rich"),
)
OPTIONAL = {
    "triton": "GPU kernels",
    "flashinfer-python": "further attention kernels for GPUs",
    "transformers": "the reference of `lightllm check`",
}


@dataclass(frozen=True, slots=True)
class EnvFlags:
    """Show versions, devices and memory; with --explain also the kernels chosen for a model, each with its reason."""

    model: ModelFlags = field(default_factory=ModelFlags)
    explain: bool = False
    """Show which kernel serves each op, and why. MODEL and --dtype decide the dtype."""
    json: bool = False
    """Print one JSON object."""
    engine: EngineSettings = field(default_factory=EngineSettings)


def run(argv: Sequence[str]) -> int:
    """Print what is here."""
    flags = parse(EnvFlags, "env", argv)
    facts: dict[str, Any] = {
        "lightllm": lightllm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": {name: {"version": _version(name), "for": use} for name, use in OPTIONAL.items()},
        "device": _device_facts(flags.engine),
    }
    if flags.explain:
        facts["kernels"] = _kernel_facts(flags)
    print(json.dumps(facts, indent=2) if flags.json else _as_text(facts))
    return 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_facts(settings: EngineSettings) -> dict[str, Any]:
    import torch

    from lightllm.device.device import find_device, free_memory, total_memory, usable_cores

    device, reason = find_device(settings.device)
    return {
        "chosen": str(device.torch_device),
        "name": device.name,
        "reason": reason,
        "cuda_build": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "compute_capability": ".".join(map(str, device.capability)) if device.is_cuda else None,
        "memory_total": total_memory(device),
        "memory_free": free_memory(device),
        "cores": usable_cores(),
    }


def _kernel_facts(flags: EnvFlags) -> dict[str, Any]:
    """The kernels that `build` would choose for this model on this device."""
    from lightllm.device.device import find_device
    from lightllm.engine.build import choose_dtype
    from lightllm.kernels.registry import choose_kernels
    from lightllm.models.config_reader import ConfigReader
    from lightllm.models.registry import read_model_spec

    device, _ = find_device(flags.engine.device)
    config = ConfigReader.load(find_model(flags.model.model))
    shape = read_model_spec(config, allow_unknown_keys=True).head_shape
    dtype, _ = choose_dtype(flags.model, config, device)
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "chosen": choose_kernels(device, dtype, shape).reasons}


def _as_text(facts: dict[str, Any]) -> str:
    device = facts["device"]
    memory = f"{device['memory_free'] / 2**30:.1f} GiB free of {device['memory_total'] / 2**30:.1f} GiB"
    rows = [
        ["lightllm", facts["lightllm"]],
        ["python", f"{facts['python']} on {facts['platform']}"],
        ["device", f"{device['chosen']} ({device['name']}): {device['reason']}"],
        ["memory", memory],
        ["cores", str(device["cores"])],
        ["GPUs", ", ".join(device["gpus"]) or "none"],
        *([name, version or "missing: needed"] for name, version in facts["packages"].items()),
    ]
    for name, entry in facts["optional"].items():
        rows.append([name, entry["version"] or f"not installed; optional: {entry['for']}"])
    text = _pairs(rows)
    if "kernels" in facts:
        kernels = facts["kernels"]
        chosen = [[op, reason] for op, reason in kernels["chosen"].items()]
        text += f"\n\nkernels for {kernels['dtype']} on {device['chosen']}\n\n" + _pairs(chosen)
    return text


def _pairs(rows: list[list[str]]) -> str:
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
