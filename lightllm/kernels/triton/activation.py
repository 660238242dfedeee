# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Gated activations: activation(gate) * up.

Per token 3 F e bytes (gate and up in, the product out) and about 10 F operations: bound by memory for long prompts,
by launch latency for decode batches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tlx

from lightllm.kernels.ops.contracts import Activation
from lightllm.kernels.triton.launch import launcher_for

_BLOCK = 1024


@triton.jit
def activate(x, KIND: tl.constexpr):
    """silu, gelu (exact) or gelu_tanh of x in float32."""
    if KIND == "silu":
        return x / (1.0 + tl.exp(-x))
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x / (1.0 + tl.exp(-2.0 * inner))


@triton.jit
def _gated_activation_kernel(
    gate_up,
    out,
    stride,
    size,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0)
    up = tl.load(gate_up + row * stride + size + column, mask=inside, other=0.0)
    value = activate(gate.to(tl.float32), KIND).to(up.dtype) * up
    tl.store(out + row * size + column, value, mask=inside)


def gated_activation(gate_up: Tensor, kind: Activation) -> Tensor:
    """As `GatedActivation`; rows of gate_up may be strided."""
    num_rows, double = gate_up.shape
    if gate_up.stride(1) != 1:
        gate_up = gate_up.contiguous()
    out = torch.empty((num_rows, double // 2), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        _gated_activation_kernel[(num_rows, triton.cdiv(double // 2, _BLOCK))](
            gate_up,
            out,
            gate_up.stride(0),
            double // 2,
            KIND=kind,
            BLOCK=_BLOCK,
            num_warps=4,
            **launcher_for(gate_up.device).options,
        )
    return out
