# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""The likeliest token of each row, and the draw of `lightllm.sampling.draw`, from logits [N, V] of any float dtype.

Greedy reads the logits once: N V e bytes and about 7 N V operations; bound by memory for many rows, by latency for few.
A draw reads them once more, with about 25 operations and one exponential per logit: N V e bytes, and on an H200 the
operations take twice as long as the bytes. Filters add three readings (see `sampling_filters`).

Weights are integers, so sums of them do not depend on how a row is split:

    v = exp((z - best) / temperature) * 2**40     float32, 2**40 for the likeliest token
    w = floor(v)                                  int64, 0 below a cut on v

    row     |     block     |     block     |     block     |        one program each: sums of w over parts of PART
    parts   |   |   |   |   |   |   |   |   |   |   |   |            one program a row: the part, then the token in it
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tlx

SCALE = tl.constexpr(2.0**40)
FLOOR = tl.constexpr(-1e30)
"""Stands for minus infinity where an infinity would make a NaN."""


@triton.jit
def scaled_probability(z, best, temperature):
    """exp((z - best) / temperature) * 2**40 in float32, the quotient and the exponential as good as the C library's.

    The quotient is a product with the reciprocal and one correction (Markstein, IBM J. R&D 34, 1990); the exponential
    splits into a power of two, made from its bits, and a fraction. Every step is one rounding, written out, so that
    each kernel gets the same bits for the same logit.
    """
    inverse = tl.math.div_rn(1.0, temperature)
    x = tl.maximum(z - best, FLOOR)
    quotient = x * inverse
    quotient = tl.fma(tl.fma(-quotient, temperature, x), inverse, quotient)
    y = tl.maximum(quotient, -60.0)
    shifted = tl.fma(y, 1.4426950216293335, 12582912.0)  # 1.5 * 2**23: leaves the nearest integer in the low bits
    whole = shifted - 12582912.0
    part = tl.fma(y, 1.4426950216293335, -whole)
    part = tl.fma(y, 1.925962991126617e-08, part)
    power = (shifted.to(tl.int32, bitcast=True) + 167) << 23  # 167 = 127 + 40
    return tl.exp2(part) * power.to(tl.float32, bitcast=True)


@triton.jit
def is_finite(x):
    return (x < float("inf")) & (x > -float("inf"))


@triton.jit(do_not_specialize_on_alignment=["bad"])
def greedy_kernel(
    logits,
    part_values,
    part_ids,
    counters,
    ids,
    bad,
    best,
    history,
    rows,
    positions,
    row_stride,
    history_stride,
    size,
    blocks,
    HISTORY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = block * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    z = tl.load(logits + row * row_stride + column, mask=column < size, other=-float("inf")).to(tl.float32)
    z = tl.where(z != z, float("inf"), z)  # either makes the row bad
    value = tl.max(z, 0)
    tl.store(part_values + row * blocks + block, value)
    tl.store(part_ids + row * blocks + block, tl.min(tl.where(z == value, column, size), 0))
    tl.debug_barrier()
    if tl.atomic_add(counters + row, 1, sem="acq_rel", scope="gpu") == blocks - 1:
        tl.store(counters + row, 0)
        other = tl.arange(0, BLOCKS)
        at = row * blocks + other
        values = tl.load(part_values + at, mask=other < blocks, other=-float("inf"), cache_modifier=".cg")
        found = tl.load(part_ids + at, mask=other < blocks, other=size, cache_modifier=".cg")
        value = tl.max(values, 0)
        good = is_finite(value)
        chosen = tl.where(good, tl.min(tl.where(values == value, found, size), 0), 0)
        tl.store(ids + row, chosen)
        tl.store(bad + row, good == 0)
        tl.store(best + row, value)
        if HISTORY:
            place = tl.load(rows + row).to(tl.int64) * history_stride + tl.load(positions + row) + 1
            tl.store(history + place, chosen)


@triton.jit
def sum_kernel(
    logits,
    indices,
    best,
    temperatures,
    cuts,
    sums,
    row_stride,
    size,
    parts,
    HAS_INDICES: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    # Grid (blocks, rows that draw); a block is PARTS parts.
    first = tl.program_id(0) * PARTS
    drawn = tl.program_id(1).to(tl.int64)
    column = first * PART + tl.arange(0, PART * PARTS)
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    row = tl.load(indices + drawn) if HAS_INDICES else drawn
    top = tl.load(best + row)
    if is_finite(top):
        z = tl.load(logits + row * row_stride + column, mask=column < size, other=-float("inf")).to(tl.float32)
        v = scaled_probability(z, top, tl.load(temperatures + drawn))
        weight = tl.where(v >= tl.load(cuts + drawn) * SCALE, v, 0.0).to(tl.int64)
        part = first + tl.arange(0, PARTS)
        total = tl.sum(tl.reshape(weight, [PARTS, PART]), 1)
        tl.store(sums + drawn * parts + part, total, mask=part < parts)


@triton.jit
def pick_kernel(
    logits,
    indices,
    best,
    temperatures,
    cuts,
    uniforms,
    sums,
    ids,
    history,
    rows,
    positions,
    row_stride,
    history_stride,
    size,
    parts,
    HISTORY: tl.constexpr,
    HAS_INDICES: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    # The first token at which the cumulative weight exceeds u * total: first its part, then its place there.
    drawn = tl.program_id(0).to(tl.int64)
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    row = tl.load(indices + drawn) if HAS_INDICES else drawn
    top = tl.load(best + row)
    if is_finite(top):
        part = tl.arange(0, PARTS)
        own = tl.load(sums + drawn * parts + part, mask=part < parts, other=0)
        total = tl.sum(own, 0)
        target = (tl.load(uniforms + drawn) * total.to(tl.float64)).to(tl.int64)
        target = tl.minimum(target, total - 1)
        before = tl.cumsum(own, 0) <= target
        begin = tl.sum(before.to(tl.int32), 0) * PART
        target -= tl.sum(tl.where(before, own, 0), 0)
        column = begin + tl.arange(0, PART)
        z = tl.load(logits + row * row_stride + column, mask=column < size, other=-float("inf")).to(tl.float32)
        v = scaled_probability(z, top, tl.load(temperatures + drawn))
        weight = tl.where(v >= tl.load(cuts + drawn) * SCALE, v, 0.0).to(tl.int64)
        passed = tl.sum((tl.cumsum(weight, 0) <= target).to(tl.int32), 0)
        chosen = tl.minimum(begin + passed, size - 1)
        tl.store(ids + row, chosen)
        if HISTORY:
            place = tl.load(rows + row).to(tl.int64) * history_stride + tl.load(positions + row) + 1
            tl.store(history + place, chosen)
