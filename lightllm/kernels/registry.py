"""Which implementation serves each op on this device, chosen once, with the reason for each choice."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from lightllm.device.device import Device
from lightllm.errors import ConfigError
from lightllm.kernels.ops.contracts import HeadShape, KernelSet
from lightllm.kernels.reference import linear, pointwise
from lightllm.kernels.reference.attention import TorchAttention


def choose_kernels(device: Device, dtype: torch.dtype, shape: HeadShape) -> KernelSet:
    """The kernels for one engine: Triton on a GPU, the references on a CPU.

    Raises ConfigError when the GPU kernels cannot serve the model, with the reason.
    """
    if not device.is_cuda:
        return reference_kernels(dtype)
    if find_spec("triton") is None:
        raise ConfigError("serving on a GPU needs Triton; install lightllm[cuda] or use --device cpu")
    from lightllm.kernels.triton import backend

    reason = backend.why_not(device, dtype, shape)
    if reason is not None:
        raise ConfigError(f"the GPU kernels cannot serve this model: {reason}")
    return backend.triton_kernels(device, dtype, shape)


def reference_kernels(dtype: torch.dtype) -> KernelSet:
    """The torch references, which are the CPU backend."""
    plain = linear.why_not_blocked(dtype)
    reasons = dict.fromkeys(
        ("rms_norm", "rotary_store", "gated_activation", "place_tokens", "embed", "move", "attention"),
        "torch: the CPU backend",
    )
    reasons["linear"] = "oneDNN blocked weights" if plain is None else f"torch: {plain}"
    return KernelSet(
        rms_norm=pointwise.rms_norm,
        rotary_store=pointwise.rotary_store,
        place_tokens=pointwise.place_tokens,
        embed=pointwise.embed,
        move=pointwise.move,
        attention=TorchAttention(),
        pack_linear=linear.pack_linear,
        reasons=reasons,
    )
