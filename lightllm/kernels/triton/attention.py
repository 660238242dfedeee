# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Attention over the token-level pool: one kernel for decodes, chunks of prompts and anything between.

Decode, per sequence of K keys: 2 K Hk D e bytes and 4 K Hq D operations, so bound by memory (group 4: 4 operations a
byte). Prompts, per sequence of L tokens after P cached ones: 4 Hq D L (P + L/2) operations over few bytes: bound by
the matrix units and the exponentials between them.

A program computes one item (see `attention_plan`): up to BLOCK_M rows, which are tokens times the query heads of one
key/value head, over a range of keys, gathered by slot. Online softmax in base 2 as in FlashAttention-2 (arXiv
2307.08691, section 3.1), split over keys as in Flash-Decoding; `merge_kernel` puts the parts of a tile together.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tlx

LOWEST = tl.constexpr(-1.0e38)
"""The running maximum before any key was seen: finite, so that nothing seen gives 0 and not NaN."""


@triton.jit
def _scores(qk, position, column, scale, soft_cap, slope, HAS_CAP: tl.constexpr, HAS_ALIBI: tl.constexpr):
    """Scores in base 2 from raw products."""
    LOG2E: tl.constexpr = 1.4426950408889634
    if HAS_CAP:
        bent = qk * (2.0 / soft_cap * scale)
        score = soft_cap * LOG2E * (1.0 - 2.0 / (tl.exp(bent) + 1.0))
    else:
        score = qk * (scale * LOG2E)
    if HAS_ALIBI:
        score += slope[:, None] * LOG2E * (column[None, :] - position[:, None]).to(tl.float32)
    return score


@triton.jit
def attention_kernel(
    q,
    k_cache,
    v_cache,
    table,
    items,
    out,
    partial_values,
    partial_weights,
    slopes,
    table_stride,
    cache_stride,
    scale,
    soft_cap,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ITEM_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    SINGLE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    # Grid (KV_HEADS, items). q, out [tokens, Hq, D]; partial_values [parts, KV_HEADS, BLOCK_M, D] float32,
    # partial_weights [parts, KV_HEADS, BLOCK_M] float32: log2 of the part's total weight. SINGLE: every item has one
    # token, so what is seen is the same for all rows. WIDE: the cache has more elements than an int32 counts.
    kv_head = tl.program_id(0)
    item = items + tl.program_id(1) * ITEM_SIZE
    if PDL:
        tlx.gdc_launch_dependents()
    first_token = tl.load(item).to(tl.int64)
    first_position = tl.load(item + 1)
    count = tl.load(item + 2)
    key_start = tl.load(item + 4)
    key_end = tl.load(item + 5)
    num_parts = tl.load(item + 7)
    slots = table + tl.load(item + 3).to(tl.int64) * table_stride
    k_cache += kv_head * HEAD_DIM
    v_cache += kv_head * HEAD_DIM
    if PDL:
        tlx.gdc_wait()
    if count == 0:
        return

    row = tl.arange(0, BLOCK_M)
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, BLOCK_D)
    valid = row < count * GROUP
    position = first_position + tl.minimum(row // GROUP, count - 1)
    place = (first_token + row // GROUP)[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + head[:, None] * HEAD_DIM
    place += dim[None, :]
    stored = valid[:, None] & (dim[None, :] < HEAD_DIM)
    queries = tl.load(q + place, mask=stored, other=0.0)
    slope = tl.load(slopes + head) if HAS_ALIBI else 0.0

    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], LOWEST, tl.float32)
    low = tl.maximum(key_start, first_position - window + 1) if HAS_WINDOW else key_start
    for start in tl.range(low, key_end, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        # Columns past the end repeat the last key, so that what other slots hold cannot matter.
        slot = tl.load(slots + tl.minimum(column, key_end - 1))
        if WIDE:
            slot = slot.to(tl.int64)
        source = slot[:, None] * cache_stride + dim[None, :]
        if HEAD_DIM == BLOCK_D:
            k = tl.load(k_cache + source)
        else:
            k = tl.load(k_cache + source, mask=dim[None, :] < HEAD_DIM, other=0.0)
        qk = tl.dot(queries, tl.trans(k).to(queries.dtype), input_precision=PRECISION)
        score = _scores(qk, position, column, scale, soft_cap, slope, HAS_CAP, HAS_ALIBI)
        if SINGLE:
            seen = column < key_end
            if HAS_WINDOW:
                seen &= column > first_position - window
            score += tl.where(seen, 0.0, float("-inf"))[None, :]
        elif HAS_WINDOW:
            seen = (column[None, :] <= position[:, None]) & (column[None, :] < key_end)
            seen &= column[None, :] > position[:, None] - window
            score = tl.where(seen, score, float("-inf"))
        elif start + BLOCK_N > tl.minimum(first_position + 1, key_end):
            seen = (column[None, :] <= position[:, None]) & (column[None, :] < key_end)
            score = tl.where(seen, score, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - new_highest[:, None])
        rescale = tl.exp2(highest - new_highest)
        total = total * rescale + tl.sum(weight, 1)
        accumulator = accumulator * rescale[:, None]
        if HEAD_DIM == BLOCK_D:
            v = tl.load(v_cache + source)
        else:
            v = tl.load(v_cache + source, mask=dim[None, :] < HEAD_DIM, other=0.0)
        accumulator = tl.dot(weight.to(queries.dtype), v.to(queries.dtype), accumulator, input_precision=PRECISION)
        highest = new_highest

    total = tl.where(total > 0, total, 1.0)  # a part outside the window has seen nothing: its weight is 2 ** LOWEST
    result = accumulator / total[:, None]
    if num_parts == 1:
        tl.store(out + place, result.to(out.dtype.element_ty), mask=stored)
    else:
        part = (tl.load(item + 6) * KV_HEADS + kv_head).to(tl.int64) * BLOCK_M
        tl.store(partial_values + (part + row)[:, None] * HEAD_DIM + dim[None, :], result, mask=stored)
        tl.store(partial_weights + part + row, highest + tl.log2(total), mask=valid)


@triton.jit
def _read_merge(merges, unit, num_units, units_each, MERGE_SIZE: tl.constexpr):
    """The fields of a unit's merge; all 0 where there is none."""
    merge = merges + unit // units_each * MERGE_SIZE
    there = unit < num_units
    return (
        tl.load(merge, mask=there, other=0),
        tl.load(merge + 1, mask=there, other=0),
        tl.load(merge + 2, mask=there, other=0),
        tl.load(merge + 3, mask=there, other=0),
    )


@triton.jit(do_not_specialize=["num_units", "most_tokens"])
def merge_kernel(
    out,
    partial_values,
    partial_weights,
    merges,
    num_units,
    most_tokens,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MERGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    # A unit is a merge, one of its tokens and a query head; its parts are summed in a fixed order. Each program takes
    # every `num_programs`-th unit and ends with the first merge that is not there: a captured launch may have many.
    HEADS: tl.constexpr = KV_HEADS * GROUP
    unit = tl.program_id(0)
    if PDL:
        tlx.gdc_launch_dependents()
    units_each = HEADS * most_tokens
    first_token, count, first_part, num_parts = _read_merge(merges, unit, num_units, units_each, MERGE_SIZE)
    if PDL:
        tlx.gdc_wait()
    dim = tl.arange(0, BLOCK_D)
    while count > 0:
        head = unit % HEADS
        token = unit // HEADS % most_tokens
        if token < count:
            row = token * GROUP + head % GROUP
            values = tl.zeros([BLOCK_D], tl.float32)
            total = 0.0
            highest = LOWEST
            for start in tl.range(0, num_parts, BLOCK_PARTS):
                index = start + tl.arange(0, BLOCK_PARTS)
                there = index < num_parts
                place = ((first_part + index) * KV_HEADS + head // GROUP).to(tl.int64) * BLOCK_M + row
                weight = tl.load(partial_weights + place, mask=there, other=LOWEST)
                part = tl.load(
                    partial_values + place[:, None] * HEAD_DIM + dim[None, :],
                    mask=there[:, None] & (dim[None, :] < HEAD_DIM),
                    other=0.0,
                )
                new_highest = tl.maximum(highest, tl.max(weight, 0))
                rescale = tl.exp2(highest - new_highest)
                weight = tl.exp2(weight - new_highest)
                total = total * rescale + tl.sum(weight, 0)
                values = values * rescale + tl.sum(part * weight[:, None], 0)
                highest = new_highest
            to = out + ((first_token.to(tl.int64) + token) * HEADS + head) * HEAD_DIM + dim
            tl.store(to, (values / total).to(out.dtype.element_ty), mask=dim < HEAD_DIM)
        unit += tl.num_programs(0)
        first_token, count, first_part, num_parts = _read_merge(merges, unit, num_units, units_each, MERGE_SIZE)
