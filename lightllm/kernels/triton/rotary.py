# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Head norms, rotary embedding and the write into the KV pool, one kernel.

Per token 2 (Hq + 2 Hk) D e bytes (each head in and out once) and about 10 operations an element: bound by memory for
long prompts, by launch latency for decode batches.

Each element needs its rotary partner. When the whole head is rotated in halves, a head is loaded as [2, D/2] and the
partner is the same tile with its two halves exchanged, so both loads are wide and the second hits the L1 cache.
Other layouts address the partner element by element.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tlx

from lightllm.kernels.ops.contracts import HeadNorms, HeadShape
from lightllm.kernels.triton.launch import launcher_for, next_power_of_2

_FEW_PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _rotary_store_kernel(
    qkv,
    cos,
    sin,
    q_weight,
    k_weight,
    k_cache,
    v_cache,
    slots,
    q_out,
    qkv_stride,
    angle_stride,
    cache_stride,
    eps,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    # Tiles are [heads, 2, BLOCK_DIM / 2]; when halves are rotated, the middle axis tells the halves apart.
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None, None]
    side = tl.arange(0, 2)[None, :, None]
    step = tl.arange(0, BLOCK_DIM // 2)[None, None, :]
    IN_HALVES: tl.constexpr = (ROTARY_DIM == HEAD_DIM) and not INTERLEAVED
    HALF: tl.constexpr = ROTARY_DIM // 2
    if IN_HALVES:
        dim = side * HALF + step
        partner = (1 - side) * HALF + step
        pair = step
        first = side == 0
        inside = (head < Q_HEADS + 2 * KV_HEADS) & (step < HALF)
    else:
        dim = side * (BLOCK_DIM // 2) + step
        inside = (head < Q_HEADS + 2 * KV_HEADS) & (dim < HEAD_DIM)
        if INTERLEAVED:
            first = dim % 2 == 0
            partner = tl.where(first, dim + 1, dim - 1)
            pair = dim // 2
        else:
            first = dim < HALF
            partner = tl.where(first, dim + HALF, dim - HALF)
            pair = tl.where(first, dim, dim - HALF)
    rotated = inside & (head < Q_HEADS + KV_HEADS) & (dim < ROTARY_DIM)
    is_query = head < Q_HEADS
    is_value = head >= Q_HEADS + KV_HEADS
    if PDL:
        tlx.gdc_launch_dependents()
    weighted = inside & (head < Q_HEADS + KV_HEADS)
    if NORMS:
        scale = tl.load(q_weight + dim, mask=inside & is_query, other=0.0)
        scale = tl.where(is_query, scale, tl.load(k_weight + dim, mask=weighted & (head >= Q_HEADS), other=0.0))
        other_scale = tl.load(q_weight + partner, mask=rotated & is_query, other=0.0)
        other_scale = tl.where(
            is_query, other_scale, tl.load(k_weight + partner, mask=rotated & (head >= Q_HEADS), other=0.0)
        )
    if PDL:
        tlx.gdc_wait()
    source = qkv + token * qkv_stride + head * HEAD_DIM
    value = tl.load(source + dim, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(source + partner, mask=rotated, other=0.0).to(tl.float32)
    c = tl.load(cos + token * angle_stride + pair, mask=rotated, other=1.0)
    s = tl.load(sin + token * angle_stride + pair, mask=rotated, other=0.0)
    if NORMS:
        squares = tl.sum(tl.sum(value * value, 2, keep_dims=True), 1, keep_dims=True)
        inverse = tl.rsqrt(squares / HEAD_DIM + eps)
        value = tl.where(is_value, value, value * inverse * scale.to(tl.float32))
        other = other * inverse * other_scale.to(tl.float32)
    value = value * c + tl.where(first, -other, other) * s
    slot = tl.load(slots + token).to(tl.int64)
    q_to = q_out + token * (Q_HEADS * HEAD_DIM) + head * HEAD_DIM + dim
    tl.store(q_to, value.to(q_out.dtype.element_ty), mask=inside & is_query)
    k_to = k_cache + slot * cache_stride + (head - Q_HEADS) * HEAD_DIM + dim
    tl.store(k_to, value.to(k_cache.dtype.element_ty), mask=weighted & (head >= Q_HEADS))
    v_to = v_cache + slot * cache_stride + (head - Q_HEADS - KV_HEADS) * HEAD_DIM + dim
    tl.store(v_to, value.to(v_cache.dtype.element_ty), mask=inside & is_value)


def rotary_store(
    qkv: Tensor,
    shape: HeadShape,
    cos: Tensor,
    sin: Tensor,
    norms: HeadNorms | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """As `RotaryStore`; computed in float32, rounded once."""
    num_tokens = qkv.shape[0]
    out = torch.empty((num_tokens, shape.num_q_heads, shape.head_dim), dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return out
    assert qkv.stride(1) == 1 and cos.stride() == sin.stride() and k_cache.stride() == v_cache.stride()
    launcher = launcher_for(qkv.device)
    heads = shape.num_q_heads + 2 * shape.num_kv_heads
    few = num_tokens * heads <= 8 * _FEW_PROGRAMS_PER_PROCESSOR * launcher.num_processors
    block_heads = 2 if few else 16
    block_dim = next_power_of_2(shape.head_dim)
    _rotary_store_kernel[(num_tokens, triton.cdiv(heads, block_heads))](
        qkv,
        cos,
        sin,
        qkv if norms is None else norms.q_weight,
        qkv if norms is None else norms.k_weight,
        k_cache,
        v_cache,
        slots,
        out,
        qkv.stride(0),
        cos.stride(0),
        k_cache.stride(0),
        0.0 if norms is None else norms.eps,
        Q_HEADS=shape.num_q_heads,
        KV_HEADS=shape.num_kv_heads,
        HEAD_DIM=shape.head_dim,
        ROTARY_DIM=shape.rotary_dim,
        INTERLEAVED=shape.interleaved,
        NORMS=norms is not None,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=max(1, block_heads * block_dim // (256 if few else 1024)),
        **launcher.options,
    )
    return out
