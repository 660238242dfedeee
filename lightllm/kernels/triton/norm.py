# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""RMSNorm.

Per row of H elements of e bytes: 2 H e bytes moved, 4 H operations. Bound by memory for long prompts, by launch latency
for decode batches. What is added to the residual stream is added by the product that makes it (`LinearOp.add`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tlx

from lightllm.kernels.triton.launch import launcher_for, next_power_of_2


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    out,
    x_stride,
    size,
    eps,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    if PDL:
        tlx.gdc_launch_dependents()
    scale = tl.load(weight + column, mask=inside, other=0.0)
    if PDL:
        tlx.gdc_wait()
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    normed = (wide * inverse).to(out.dtype.element_ty)
    tl.store(out + row * size + column, normed * scale, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `RmsNorm`; rows of x may be strided."""
    num_rows, size = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if num_rows:
        block = next_power_of_2(size)
        _rms_norm_kernel[(num_rows,)](
            x,
            weight,
            out,
            x.stride(0),
            size,
            eps,
            BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
            **launcher_for(x.device).options,
        )
    return out
