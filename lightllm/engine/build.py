"""From settings to an engine: find the device, read the config, load the weights, size the pool, saying why."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightllm import envs
from lightllm.config.settings import ModelSettings, Settings
from lightllm.device.device import Device, find_device, free_memory, total_memory, usable_cores
from lightllm.engine.budget import plan_pool, room_for
from lightllm.engine.frame import Frame, measure_working_memory
from lightllm.engine.runner import Engine
from lightllm.errors import ConfigError, OutOfMemory
from lightllm.kernels.ops.contracts import KernelSet
from lightllm.kernels.reference.linear import why_not_blocked
from lightllm.kernels.registry import choose_kernels
from lightllm.models.checkpoint import DummySource, SafetensorsSource
from lightllm.models.config_reader import ConfigReader
from lightllm.models.decoder import Decoder, DecoderSpec
from lightllm.models.registry import read_model_spec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_STEP_TOKENS = 512
CUDA_STEP_TOKENS = 8192
FEW_RUNNING, MANY_RUNNING = 256, 512
LARGE_MEMORY = 64 << 30
"""Bytes of a GPU from which many requests run: the logits of their graphs and their tables take half a gigabyte."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A value that was "auto", or follows from others, and why it is what it is."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine ready to run, with the numbers a scheduler needs."""

    engine: Engine
    spec: DecoderSpec
    max_len: int
    total_tokens: int
    max_running: int
    max_step_tokens: int
    resolved: tuple[Resolved, ...]


def build(settings: Settings, directory: Path) -> BuiltEngine:
    """Build the engine for the model in `directory`. Raises ConfigError, CheckpointError or OutOfMemory."""
    device, why_device = find_device(settings.engine.device)
    threads = _set_threads(settings, device)
    config = ConfigReader.load(directory)
    dtype, why_dtype = choose_dtype(settings.model, config, device)
    spec = read_model_spec(config, allow_unknown_keys=settings.model.allow_unknown_config_keys)
    limit, why_limit = _position_limit(spec, settings.model)
    with room_for("the kernels' workspace", "free memory on the device, or use --device cpu"):
        kernels = choose_kernels(device, dtype, spec.head_shape)
    model, weights = _load(settings.model, directory, spec, limit, dtype, device, kernels)
    max_running, why_running = _most_running(settings, device)
    step_tokens = settings.scheduler.max_step_tokens or (CUDA_STEP_TOKENS if device.is_cuda else CPU_STEP_TOKENS)
    frame = Frame(model, kernels, spec, dtype, device, max_running, threads)
    working = measure_working_memory(frame, step_tokens, limit) if device.is_cuda else 0
    layout = spec.kv_layout(dtype)
    budget = plan_pool(layout, settings.engine, device, max_running * limit, working)
    max_len = min(limit, budget.tokens)
    if max_running > budget.tokens:
        max_running, why_running = budget.tokens, "what the KV pool holds"
    pool = f"a KV pool of {budget.tokens} tokens of {layout.bytes_per_token} bytes and the tables of its requests"
    with room_for(pool, "lower --max-total-tokens, --max-running or --max-model-len"):
        engine = frame.engine(budget.tokens, max_len, graph_tokens=step_tokens if device.is_cuda else 0)
    resolved = (
        Resolved("device", f"{device.torch_device} ({device.name})", why_device),
        Resolved("dtype", _name(dtype), why_dtype),
        weights,
        Resolved("kv pool", f"{budget.tokens} tokens, {_gib(budget.tokens * layout.bytes_per_token)}", budget.reason),
        Resolved("max model len", max_len, why_limit if max_len == limit else "what the KV pool holds"),
        Resolved("max running", max_running, why_running),
        Resolved("max step tokens", step_tokens, f"default on {device.torch_device.type}"),
        *(Resolved(f"kernel {name}", "", reason) for name, reason in kernels.reasons.items()),
    )
    return BuiltEngine(engine, spec, max_len, budget.tokens, max_running, step_tokens, resolved)


def _most_running(settings: Settings, device: Device) -> tuple[int, str]:
    if settings.scheduler.max_running is not None:
        return settings.scheduler.max_running, "asked for"
    if device.is_cuda and total_memory(device) >= LARGE_MEMORY:
        return MANY_RUNNING, f"default on a GPU of {LARGE_MEMORY >> 30} GiB or more"
    return FEW_RUNNING, "default on a smaller GPU" if device.is_cuda else "default on a CPU"


def _set_threads(settings: Settings, device: Device) -> int | None:
    if device.is_cuda:
        return None
    threads = settings.engine.cpu_threads or envs.openmp_threads() or usable_cores()
    torch.set_num_threads(threads)
    return threads


def choose_dtype(settings: ModelSettings, config: ConfigReader, device: Device) -> tuple[torch.dtype, str]:
    """The type of weights and activations, and why. Raises ConfigError for a checkpoint of another type."""
    if settings.dtype != "auto":
        return _DTYPES[settings.dtype], "asked for"
    if not device.is_cuda:
        return torch.float32, "the CPU's default"
    stored = config.peek("dtype") or config.peek("torch_dtype") or "bfloat16"
    if not isinstance(stored, str) or stored not in _DTYPES:
        raise ConfigError(f"{config.origin}: dtype {stored!r} is not one of {', '.join(_DTYPES)}; use --dtype")
    return (torch.bfloat16, "float32 checkpoint") if stored == "float32" else (_DTYPES[stored], "the checkpoint's")


def _position_limit(spec: DecoderSpec, settings: ModelSettings) -> tuple[int, str]:
    """The longest sequence the model can take, or the shorter one asked for."""
    longest = spec.longest_context
    wanted = settings.max_model_len
    if wanted is None:
        return longest, "the model's limit"
    if wanted > longest:
        raise ConfigError(f"max_model_len {wanted} exceeds the model's limit of {longest} positions")
    return wanted, "asked for"


def _load(
    settings: ModelSettings,
    directory: Path,
    spec: DecoderSpec,
    limit: int,
    dtype: torch.dtype,
    device: Device,
    kernels: KernelSet,
) -> tuple[Decoder, Resolved]:
    """The model with its weights on the device, and how much memory they take."""
    source: DummySource | SafetensorsSource
    origin = "random" if settings.dummy else "from the checkpoint"
    advice = "use a smaller model or a device with more memory"
    if dtype == torch.float32:
        advice = f"try --dtype bfloat16, {advice}"
    begun = time.perf_counter()
    free = free_memory(device)
    what = f"the weights in {_name(dtype)} ({_gib(free)} are free)"
    if not device.is_cuda and (settings.dummy or why_not_blocked(dtype) is None):
        # A host gives memory that it has not, and ends the process when it is written to. Mapped weights take none.
        needed = (spec.block_params + spec.head_params) * dtype.itemsize
        if needed > free:
            raise OutOfMemory(f"no room for {what}, which take at least {_gib(needed)}; {advice}")
    with room_for(what, advice):
        if settings.dummy:
            source = DummySource(dtype, device.torch_device, settings.dummy_seed)
        else:
            source = SafetensorsSource(directory, dtype, device.torch_device)
        try:
            with torch.inference_mode():
                model = Decoder(spec, source, kernels, limit, device.torch_device)
            source.check_all_taken()
        finally:
            source.close()
    reason = f"{origin}, in {time.perf_counter() - begun:.2f} s"
    return model, Resolved("weights", f"{_gib(source.num_bytes)} of {_name(dtype)}", reason)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
