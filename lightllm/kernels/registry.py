"""Which implementation serves each op on this device, chosen once, with the reason for each choice."""

from __future__ import annotations

import torch

from lightllm.device.device import Device
from lightllm.kernels.ops.contracts import KernelSet
from lightllm.kernels.reference import linear, pointwise
from lightllm.kernels.reference.attention import TorchAttention


def choose_kernels(device: Device, dtype: torch.dtype) -> KernelSet:
    """The kernels for one engine."""
    return reference_kernels(dtype)


def reference_kernels(dtype: torch.dtype) -> KernelSet:
    """The torch references, which are the CPU backend."""
    plain = linear.why_not_blocked(dtype)
    reasons = dict.fromkeys(
        ("rms_norm", "add_rms_norm", "rotary_store", "gated_activation", "attention"), "torch: the CPU backend"
    )
    reasons["linear"] = "oneDNN blocked weights" if plain is None else f"torch: {plain}"
    return KernelSet(
        rms_norm=pointwise.rms_norm,
        add_rms_norm=pointwise.add_rms_norm,
        rotary_store=pointwise.rotary_store,
        gated_activation=pointwise.gated_activation,
        attention=TorchAttention(),
        pack_linear=linear.pack_linear,
        reasons=reasons,
    )
