# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Matrix products of decode batches: out [M, N] = x [M, K] @ weight [N, K].T, for M up to 64.

2 N K bytes of bfloat16 weights and 2 M N K operations: M operations a byte, so bound by memory for every M here (the
device needs about 180 operations a byte to be bound by its matrix units). Above M = 64 cuBLAS is as good.

`vector_kernel` (M <= 4) multiplies on the ordinary cores: a program streams a few rows of the weight, and under
dependent launch its first loads are under way before the kernel that makes x has finished.
`tile_kernel` (M <= 64) multiplies on the matrix units: a program owns a block of rows, or of rows and K, in which
case the last of a block's programs to finish sums the parts in a fixed order.

Both can normalise x on the way in (vector only), multiply an activated gate with up, and add to a residual in place.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tlx

from lightllm.kernels.triton.activation import activate


@triton.jit
def _prefetch(address, size):
    """Ask for `size` bytes (a multiple of 16) from each address (likewise) to be brought into the L2 cache: Hopper's
    bulk prefetch, which returns at once."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [address.to(tl.uint64), tl.zeros(address.shape, tl.int32) + size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def vector_kernel(
    x,
    weight,
    bias,
    norm_weight,
    out,
    x_stride,
    out_stride,
    num_rows,
    size,
    eps,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    # M is a power of two and x has exactly M rows. GATED: "" or an activation; weight is then [2 num_rows, K].
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :, None]
    safe_row = tl.minimum(row, num_rows - 1).to(tl.int64)
    column = tl.arange(0, BLOCK_K)[None, None, :]
    token = tl.arange(0, M)[:, None, None]
    w_at = weight + safe_row * size + column
    u_at = w_at + num_rows.to(tl.int64) * size
    if PDL:
        tlx.gdc_launch_dependents()
    w = tl.load(w_at, mask=column < size, other=0.0, cache_modifier=".cg")
    if GATED != "":
        u = tl.load(u_at, mask=column < size, other=0.0, cache_modifier=".cg")
    if NORM:
        scale = tl.load(norm_weight + column, mask=column < size, other=0.0)
    if PDL:
        if AHEAD > 0:  # the rows of a program that starts when this one ends, into the L2 cache
            later = (tl.program_id(0) + AHEAD) * ROWS + tl.arange(0, ROWS)
            later = tl.minimum(later, num_rows - 1).to(tl.int64)
            if (tl.program_id(0) + AHEAD) * ROWS < num_rows:
                _prefetch(weight + later * size, size * 2)
                if GATED != "":
                    _prefetch(weight + (later + num_rows) * size, size * 2)
        tlx.gdc_wait()
    w_sum = tl.zeros([M, ROWS, BLOCK_K], tl.float32)
    u_sum = tl.zeros([M, ROWS, BLOCK_K], tl.float32)
    squares = tl.zeros([M, 1, BLOCK_K], tl.float32)
    for start in tl.range(0, size, BLOCK_K):
        inside = start + column < size
        value = tl.load(x + token * x_stride + start + column, mask=inside, other=0.0).to(tl.float32)
        ahead = start + BLOCK_K + column < size
        w_next = tl.load(w_at + start + BLOCK_K, mask=ahead, other=0.0, cache_modifier=".cg")
        if GATED != "":
            u_next = tl.load(u_at + start + BLOCK_K, mask=ahead, other=0.0, cache_modifier=".cg")
        if NORM:
            scale_next = tl.load(norm_weight + start + BLOCK_K + column, mask=ahead, other=0.0)
            squares += value * value
            value = value * scale.to(tl.float32)
            scale = scale_next
        w_sum += value * w.to(tl.float32)
        w = w_next
        if GATED != "":
            u_sum += value * u.to(tl.float32)
            u = u_next
    result = tl.sum(w_sum, 2)  # [M, ROWS]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    token = tl.arange(0, M)[:, None]
    inside = row < num_rows
    if NORM:
        inverse = tl.rsqrt(tl.sum(squares, 2) / size + eps)
        result *= inverse
    if HAS_BIAS:
        result += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    if GATED != "":
        upper = tl.sum(u_sum, 2)
        if NORM:
            upper *= inverse
        if HAS_BIAS:
            upper += tl.load(bias + num_rows + row, mask=inside, other=0.0).to(tl.float32)
        result = activate(result, GATED) * upper
    to = out + token * out_stride + row
    if ADD:
        result += tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def tile_kernel(
    x,
    weight,
    bias,
    out,
    partials,
    counters,
    num_tokens,
    x_stride,
    out_stride,
    num_rows,
    size,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    PREFETCH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    # Grid (blocks of rows, SPLIT). The product is computed as [BLOCK_N, BLOCK_M]: rows of the weight are the long side.
    block = tl.program_id(0)
    split = tl.program_id(1)
    row = block * BLOCK_N + tl.arange(0, BLOCK_N)
    safe_row = tl.minimum(row, num_rows - 1).to(tl.int64)
    token = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(size, BLOCK_K)
    low = (blocks * split) // SPLIT * BLOCK_K
    high = tl.minimum((blocks * (split + 1)) // SPLIT * BLOCK_K, size)
    w_at = weight + safe_row[:, None] * size + column[None, :]
    x_at = x + tl.minimum(token, num_tokens - 1)[None, :] * x_stride + column[:, None]
    upper_half = num_rows.to(tl.int64) * size
    if PDL:
        tlx.gdc_launch_dependents()
        if PREFETCH and low + 2 * BLOCK_K <= size:
            _prefetch(weight + safe_row * size + low, BLOCK_K * 4)
            if GATED != "":
                _prefetch(weight + upper_half + safe_row * size + low, BLOCK_K * 4)
        tlx.gdc_wait()
    w_sum = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    u_sum = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(low, high, BLOCK_K):
        if EVEN:
            w = tl.load(w_at + start)
            value = tl.load(x_at + start)
        else:
            w = tl.load(w_at + start, mask=(column < size - start)[None, :], other=0.0)
            value = tl.load(x_at + start, mask=(column < size - start)[:, None], other=0.0)
        w_sum = tl.dot(w, value, w_sum, input_precision=PRECISION)
        if GATED != "":
            if EVEN:
                u = tl.load(w_at + upper_half + start)
            else:
                u = tl.load(w_at + upper_half + start, mask=(column < size - start)[None, :], other=0.0)
            u_sum = tl.dot(u, value, u_sum, input_precision=PRECISION)
    if SPLIT == 1:
        _finish(w_sum, u_sum, bias, out, row, token, num_tokens, num_rows, out_stride, HAS_BIAS, GATED, ADD)
    else:
        area: tl.constexpr = BLOCK_N * BLOCK_M
        halves: tl.constexpr = 1 if GATED == "" else 2
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + token[None, :]
        own = partials + (block * SPLIT + split).to(tl.int64) * (area * halves) + place
        tl.store(own, w_sum)
        if GATED != "":
            tl.store(own + area, u_sum)
        tl.debug_barrier()
        if tl.atomic_add(counters + block, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            tl.store(counters + block, 0)
            w_sum = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            u_sum = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for other in tl.static_range(SPLIT):
                part = partials + (block * SPLIT + other).to(tl.int64) * (area * halves) + place
                w_sum += tl.load(part, cache_modifier=".cg")
                if GATED != "":
                    u_sum += tl.load(part + area, cache_modifier=".cg")
            _finish(w_sum, u_sum, bias, out, row, token, num_tokens, num_rows, out_stride, HAS_BIAS, GATED, ADD)


@triton.jit
def _finish(
    w_sum,
    u_sum,
    bias,
    out,
    row,
    token,
    num_tokens,
    num_rows,
    out_stride,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
):
    """Bias, activation and residual, then the store of a [rows, tokens] block of the product."""
    if HAS_BIAS:
        w_sum += tl.load(bias + row, mask=row < num_rows, other=0.0).to(tl.float32)[:, None]
    if GATED != "":
        if HAS_BIAS:
            u_sum += tl.load(bias + num_rows + row, mask=row < num_rows, other=0.0).to(tl.float32)[:, None]
        w_sum = activate(w_sum, GATED) * u_sum
    to = out + token[None, :] * out_stride + row[:, None]
    inside = (row < num_rows)[:, None] & (token < num_tokens)[None, :]
    if ADD:
        w_sum += tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, w_sum.to(out.dtype.element_ty), mask=inside)
