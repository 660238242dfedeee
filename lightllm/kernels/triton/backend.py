"""The CUDA kernel set: which op each Triton kernel serves, and why it cannot where it cannot."""

from __future__ import annotations

import torch

from lightllm.device.device import Device
from lightllm.kernels.ops.contracts import HeadShape, KernelSet
from lightllm.kernels.triton.attention_backend import TritonAttention
from lightllm.kernels.triton.compiling import hash_triton_early
from lightllm.kernels.triton.linear_choice import tuned_table
from lightllm.kernels.triton.linear_op import LinearPacker
from lightllm.kernels.triton.norm import rms_norm
from lightllm.kernels.triton.rotary import rotary_store
from lightllm.kernels.triton.tokens import embed, move, place_tokens

LOWEST_CAPABILITY = (8, 0)
LARGEST_HEAD = 256


def why_not(device: Device, dtype: torch.dtype, shape: HeadShape) -> str | None:
    """The reason these kernels cannot serve a model here, or None if they can."""
    if not device.is_cuda:
        return f"{device.name} is no CUDA device"
    if device.capability < LOWEST_CAPABILITY:
        return f"{device.name} has compute capability {device.capability}, below {LOWEST_CAPABILITY}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{dtype} is not served; use bfloat16 or float16"
    if shape.head_dim > LARGEST_HEAD or shape.head_dim % 8:
        return f"head size {shape.head_dim} is not a multiple of 8 up to {LARGEST_HEAD}"
    if shape.head_dim > 128 and shape.group > 128:
        return f"{shape.group} query heads of {shape.head_dim} for each key/value head are more than fit a program"
    return None


def triton_kernels(device: Device, dtype: torch.dtype, shape: HeadShape) -> KernelSet:
    """The kernels for one engine; `why_not` must have found nothing."""
    hash_triton_early()
    reason = f"Triton, compute capability {device.capability[0]}.{device.capability[1]}"
    pointwise = ("rms_norm", "rotary_store", "gated_activation", "place_tokens", "embed", "move")
    reasons = dict.fromkeys(pointwise, reason)
    reasons["attention"] = f"{reason}: split over keys, slots of one token"
    measured = "measured" if tuned_table(device.name) else "not measured"
    reasons["linear"] = (
        "Triton for few tokens and for the gate of many, cuBLASLt by measured algorithm, or cuBLAS; "
        f"shapes {measured} on {device.name}"
    )
    return KernelSet(
        rms_norm=rms_norm,
        rotary_store=rotary_store,
        place_tokens=place_tokens,
        embed=embed,
        move=move,
        attention=TritonAttention(shape, device.torch_device),
        pack_linear=LinearPacker(device.torch_device, device.name),
        reasons=reasons,
    )
