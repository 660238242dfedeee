# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Head norms, rotary embedding and the write into the KV pool, one kernel.

Per token 2 (Hq + 2 Hk) D e bytes (each head in and out once) and about 10 operations an element: bound by memory for
long prompts, by launch latency for decode batches.

A program takes some of one token's heads (queries, then keys, then values; what differs is decided by row), as two
tiles of the elements that turn into each other and, where not all do, a third of those that are passed on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tlx

from lightllm.kernels.ops.contracts import HeadNorms, HeadShape
from lightllm.kernels.triton.launch import launcher_for, next_power_of_2

FEW_HEADS = 4
"""Heads of all tokens, for each multiprocessor, up to which a program takes one head: starting is what takes time."""
MORE_HEADS = 32
"""The same up to which it takes eight; then sixteen."""
MANY_TOKENS = 1024
"""Tokens from which it takes thirty-two, whatever the number of heads."""


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
    # Grid (tokens, blocks of heads).
    HALF: tl.constexpr = ROTARY_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    is_query = head < Q_HEADS
    is_value = head >= Q_HEADS + KV_HEADS
    there = head < Q_HEADS + 2 * KV_HEADS
    step = tl.arange(0, BLOCK_HALF)[None, :]
    first = step * 2 if INTERLEAVED else step
    second = step * 2 + 1 if INTERLEAVED else step + HALF
    rest = ROTARY_DIM + tl.arange(0, BLOCK_REST)[None, :]
    inside = step < HALF
    left = rest < HEAD_DIM
    if PDL:
        tlx.gdc_launch_dependents()
    slot = tl.load(slots + token).to(tl.int64)
    # Each head's place where it goes, in elements from q_out, k_cache or v_cache.
    place = tl.where(is_query, token * (Q_HEADS * HEAD_DIM), slot * cache_stride)
    place += (head - tl.where(is_query, 0, tl.where(is_value, Q_HEADS + KV_HEADS, Q_HEADS))) * HEAD_DIM
    to = tl.where(is_query, q_out, tl.where(is_value, v_cache, k_cache)) + place
    if NORMS:
        first_weight = _head_weight(q_weight, k_weight, first, inside, is_query, is_value)
        second_weight = _head_weight(q_weight, k_weight, second, inside, is_query, is_value)
    if PDL:
        tlx.gdc_wait()
    source = qkv + token * qkv_stride + head * HEAD_DIM
    x = tl.load(source + first, mask=there & inside, other=0.0).to(tl.float32)
    y = tl.load(source + second, mask=there & inside, other=0.0).to(tl.float32)
    c = tl.load(cos + token * angle_stride + step, mask=inside, other=1.0)
    s = tl.load(sin + token * angle_stride + step, mask=inside, other=0.0)
    c = tl.where(is_value, 1.0, c)
    s = tl.where(is_value, 0.0, s)
    if NORMS:
        squares = tl.sum(x * x + y * y, 1, keep_dims=True)
    if ROTARY_DIM < HEAD_DIM:
        z = tl.load(source + rest, mask=there & left, other=0.0).to(tl.float32)
        if NORMS:
            squares += tl.sum(z * z, 1, keep_dims=True)
    if NORMS:
        inverse = tl.where(is_value, 1.0, tl.rsqrt(squares / HEAD_DIM + eps))
        x = x * inverse * first_weight
        y = y * inverse * second_weight
    tl.store(to + first, (x * c - y * s).to(to.dtype.element_ty), mask=there & inside)
    tl.store(to + second, (y * c + x * s).to(to.dtype.element_ty), mask=there & inside)
    if ROTARY_DIM < HEAD_DIM:
        if NORMS:
            z = z * inverse * _head_weight(q_weight, k_weight, rest, left, is_query, is_value)
        tl.store(to + rest, z.to(to.dtype.element_ty), mask=there & left)


@triton.jit
def _head_weight(q_weight, k_weight, index, inside, is_query, is_value):
    """The norm's weights of some heads at some elements; values have none."""
    query = tl.load(q_weight + index, mask=inside, other=0.0).to(tl.float32)
    key = tl.load(k_weight + index, mask=inside, other=0.0).to(tl.float32)
    return tl.where(is_value, 1.0, tl.where(is_query, query, key))


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
    block_heads = _block_heads(num_tokens, num_tokens * heads / launcher.num_processors)
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
        BLOCK_HALF=max(1, next_power_of_2(shape.rotary_dim // 2)),
        BLOCK_REST=max(1, next_power_of_2(shape.head_dim - shape.rotary_dim)),
        num_warps=1 if block_heads == 1 else 4,
        **launcher.options,
    )
    return out


def _block_heads(num_tokens: int, heads_per_processor: float) -> int:
    """Heads of a program."""
    if num_tokens >= MANY_TOKENS:
        return 32
    if heads_per_processor > MORE_HEADS:
        return 16
    return 8 if heads_per_processor > FEW_HEADS else 1
