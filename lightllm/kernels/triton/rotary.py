# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Head norms, rotary embedding and the write into the KV pool, one kernel.

Per token 2 (Hq + 2 Hk) D e bytes (each head in and out once) and about 10 operations an element: bound by memory for
long prompts, by launch latency for decode batches.

A program takes some heads of one kind (queries, keys or values) of one token, as two tiles of the elements that turn
into each other and a third of those that are passed on.
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
NUM_WARPS = 4


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
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    PDL: tl.constexpr,
):
    # Grid (tokens, blocks of query heads, then of key heads, then of value heads).
    HALF: tl.constexpr = ROTARY_DIM // 2
    Q_BLOCKS: tl.constexpr = (Q_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    KV_BLOCKS: tl.constexpr = (KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    is_query = block < Q_BLOCKS
    is_value = block >= Q_BLOCKS + KV_BLOCKS
    before = tl.where(is_query, 0, tl.where(is_value, Q_BLOCKS + KV_BLOCKS, Q_BLOCKS))
    head = (block - before) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]  # among those of its kind
    there = head < tl.where(is_query, Q_HEADS, KV_HEADS)
    step = tl.arange(0, BLOCK_HALF)[None, :]
    first = step * 2 if INTERLEAVED else step
    second = step * 2 + 1 if INTERLEAVED else step + HALF
    rest = ROTARY_DIM + tl.arange(0, BLOCK_REST)[None, :]
    turning = there & (step < HALF)
    passing = there & (rest < HEAD_DIM)
    if PDL:
        tlx.gdc_launch_dependents()
    if NORMS:
        weight = k_weight
        if is_query:
            weight = q_weight
        first_weight = tl.load(weight + first, mask=step < HALF, other=0.0).to(tl.float32)
        second_weight = tl.load(weight + second, mask=step < HALF, other=0.0).to(tl.float32)
        rest_weight = tl.load(weight + rest, mask=rest < HEAD_DIM, other=0.0).to(tl.float32)
    slot = tl.load(slots + token).to(tl.int64)
    if PDL:
        tlx.gdc_wait()
    skipped = tl.where(is_query, 0, tl.where(is_value, Q_HEADS + KV_HEADS, Q_HEADS))
    source = qkv + token * qkv_stride + (skipped + head) * HEAD_DIM
    a = tl.load(source + first, mask=turning, other=0.0)
    b = tl.load(source + second, mask=turning, other=0.0)
    r = tl.load(source + rest, mask=passing, other=0.0)
    if is_value:
        _store_tiles(v_cache + slot * cache_stride + head * HEAD_DIM, first, second, rest, a, b, r, turning, passing)
    else:
        c = tl.load(cos + token * angle_stride + step, mask=step < HALF, other=1.0)
        s = tl.load(sin + token * angle_stride + step, mask=step < HALF, other=0.0)
        x = a.to(tl.float32)
        y = b.to(tl.float32)
        z = r.to(tl.float32)
        if NORMS:
            squares = tl.sum(x * x + y * y, 1, keep_dims=True) + tl.sum(z * z, 1, keep_dims=True)
            inverse = tl.rsqrt(squares / HEAD_DIM + eps)
            x = x * inverse * first_weight
            y = y * inverse * second_weight
            z = z * inverse * rest_weight
        turned_x = x * c - y * s
        turned_y = y * c + x * s
        if is_query:
            to = q_out + token * (Q_HEADS * HEAD_DIM) + head * HEAD_DIM
            _store_tiles(to, first, second, rest, turned_x, turned_y, z, turning, passing)
        else:
            to_key = k_cache + slot * cache_stride + head * HEAD_DIM
            _store_tiles(to_key, first, second, rest, turned_x, turned_y, z, turning, passing)


@triton.jit
def _store_tiles(to, first, second, rest, a, b, r, turning, passing):
    """Store the three tiles of some heads at their elements of `to`."""
    dtype: tl.constexpr = to.dtype.element_ty
    tl.store(to + first, a.to(dtype), mask=turning)
    tl.store(to + second, b.to(dtype), mask=turning)
    tl.store(to + rest, r.to(dtype), mask=passing)


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
    block_heads = 2 if few else (8 if norms is None else 16)
    blocks = triton.cdiv(shape.num_q_heads, block_heads) + 2 * triton.cdiv(shape.num_kv_heads, block_heads)
    _rotary_store_kernel[(num_tokens, blocks)](
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
        BLOCK_HALF=max(1, next_power_of_2(shape.rotary_dim // 2)),
        BLOCK_REST=max(1, next_power_of_2(shape.head_dim - shape.rotary_dim)),
        num_warps=1 if few else NUM_WARPS,
        **launcher.options,
    )
    return out
