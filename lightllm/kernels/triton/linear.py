# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Matrix products of decode batches: out [M, N] = x [M, K] @ weight [N, K].T, for M up to 128.

2 N K bytes of bfloat16 weights and 2 M N K operations: M operations a byte, so bound by memory for every M here (the
device needs about 180 operations a byte to be bound by its matrix units). Above M = 64 the library is as good for large
weights, above M = 128 for all.

`vector_kernel` (M <= 4) multiplies on the ordinary cores: a program streams a few rows of the weight, and under
dependent launch its first loads are under way before the kernel that makes x has finished.
`tile_kernel` multiplies on the matrix units: a program owns a block of rows, or of rows and K, in which
case the last of a block's programs to finish sums the parts in a fixed order.
Both can also multiply an activated gate with up (GATED), or add the product to what is in out (ADD).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tlx

from lightllm.kernels.triton.activation import activate


@triton.jit
def prefetch(address, size):
    """Ask for `size` bytes (a multiple of 16) from each address (likewise) to be brought into the L2 cache: Hopper's
    bulk prefetch, which returns at once. Only a hint, so it may run above `gdc_wait`."""
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
    out,
    x_stride,
    out_stride,
    num_rows,
    size,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    # M is a power of two and x has exactly M rows. GATED is "" or an activation: then weight is [2 num_rows, K], and
    # a program's rows are those of gate and up by turns.
    HALVES: tl.constexpr = 1 if GATED == "" else 2
    index = tl.arange(0, ROWS)
    row = tl.minimum(tl.program_id(0) * (ROWS // HALVES) + index // HALVES, num_rows - 1)
    row = (row + index % HALVES * num_rows)[None, :, None].to(tl.int64)
    column = tl.arange(0, BLOCK_K)[None, None, :]
    token = tl.arange(0, M)[:, None, None]
    w_at = weight + row * size + column
    if PDL:
        tlx.gdc_launch_dependents()
    w = tl.load(w_at, mask=column < size, other=0.0, cache_modifier=".cg")
    if PDL:
        tlx.gdc_wait()
    x_at = x + token * x_stride + column
    value = tl.load(x_at, mask=column < size, other=0.0)
    to = tl.program_id(0) * (ROWS // HALVES) + tl.arange(0, ROWS // HALVES)[None, :]
    out_at = out + tl.arange(0, M)[:, None] * out_stride + to
    if ADD:
        before = tl.load(out_at, mask=to < num_rows, other=0.0)
    total = tl.zeros([M, ROWS, BLOCK_K], tl.float32)
    for start in tl.range(0, size, BLOCK_K):
        ahead = start + BLOCK_K + column < size
        w_next = tl.load(w_at + start + BLOCK_K, mask=ahead, other=0.0, cache_modifier=".cg")
        value_next = tl.load(x_at + start + BLOCK_K, mask=ahead, other=0.0)
        total += value.to(tl.float32) * w.to(tl.float32)
        w = w_next
        value = value_next
    result = tl.sum(total, 2)  # [M, ROWS]
    if HAS_BIAS:
        result += tl.load(bias + row.reshape(1, ROWS)).to(tl.float32)
    if GATED != "":
        gate, up = tl.split(tl.reshape(result, [M, ROWS // 2, 2]))
        result = activate(gate.to(out.dtype.element_ty).to(tl.float32), GATED) * up
    if ADD:
        result += before.to(tl.float32)
    tl.store(out_at, result.to(out.dtype.element_ty), mask=to < num_rows)


@triton.jit(do_not_specialize=["num_tokens"])
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
    # GATED is as in `vector_kernel`; gates and what they let through take turns by eights, which a matrix unit's layout
    # keeps in one thread.
    block = tl.program_id(0)
    split = tl.program_id(1)
    index = tl.arange(0, BLOCK_N)
    if GATED == "":
        safe_row = tl.minimum(block * BLOCK_N + index, num_rows - 1).to(tl.int64)
    else:
        pair = block * (BLOCK_N // 2) + index // 16 * 8 + index % 8
        safe_row = (tl.minimum(pair, num_rows - 1) + index // 8 % 2 * num_rows).to(tl.int64)
    token = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(size, BLOCK_K)
    low = (blocks * split) // SPLIT * BLOCK_K
    high = tl.minimum((blocks * (split + 1)) // SPLIT * BLOCK_K, size)
    w_at = weight + safe_row[:, None] * size + column[None, :]
    x_at = x + tl.minimum(token, num_tokens - 1)[None, :] * x_stride + column[:, None]
    if PDL:
        tlx.gdc_launch_dependents()
        if PREFETCH and low + 2 * BLOCK_K <= size:
            prefetch(weight + safe_row * size + low, BLOCK_K * 4)
        tlx.gdc_wait()
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(low, high, BLOCK_K):
        if EVEN:
            w = tl.load(w_at + start)
            value = tl.load(x_at + start)
        else:
            w = tl.load(w_at + start, mask=(column < size - start)[None, :], other=0.0)
            value = tl.load(x_at + start, mask=(column < size - start)[:, None], other=0.0)
        total = tl.dot(w, value, total, input_precision=PRECISION)
    if SPLIT == 1:
        _finish(total, bias, out, block, safe_row, token, num_tokens, num_rows, out_stride, HAS_BIAS, GATED, ADD)
    else:
        area: tl.constexpr = BLOCK_N * BLOCK_M
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + token[None, :]
        own = partials + (block * SPLIT + split).to(tl.int64) * area + place
        tl.store(own, total)
        tl.debug_barrier()
        if tl.atomic_add(counters + block, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            tl.store(counters + block, 0)
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for other in tl.static_range(SPLIT):
                part = partials + (block * SPLIT + other).to(tl.int64) * area + place
                total += tl.load(part, cache_modifier=".cg")
            _finish(total, bias, out, block, safe_row, token, num_tokens, num_rows, out_stride, HAS_BIAS, GATED, ADD)


@triton.jit
def _finish(
    total,
    bias,
    out,
    block,
    weight_row,
    token,
    num_tokens,
    num_rows,
    out_stride,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
):
    """Bias, gate, sum and store of a [rows, tokens] block of the product."""
    dtype: tl.constexpr = out.dtype.element_ty
    BLOCK_M: tl.constexpr = total.shape[1]
    BLOCK_N: tl.constexpr = total.shape[0]
    if HAS_BIAS:
        total += tl.load(bias + weight_row).to(tl.float32)[:, None]
    if GATED == "":
        row = block * BLOCK_N + tl.arange(0, BLOCK_N)
    else:
        row = block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        eights = tl.reshape(total, [BLOCK_N // 16, 2, 8, BLOCK_M])
        gate, up = tl.split(tl.permute(eights, [0, 2, 3, 1]))
        total = tl.reshape(activate(gate.to(dtype).to(tl.float32), GATED) * up, [BLOCK_N // 2, BLOCK_M])
    inside = (row < num_rows)[:, None] & (token < num_tokens)[None, :]
    out_at = out + token[None, :] * out_stride + row[:, None]
    if ADD:
        total += tl.load(out_at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_at, total.to(dtype), mask=inside)
