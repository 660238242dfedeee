# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""The threshold that top_k and top_p put on a row's probabilities, exactly as `lightllm.sampling.draw` defines it.

Three readings of N V e bytes and about 60, 60 and 25 operations a logit: bound by operations. Rows with neither filter
are left at once.

With v as in `sampling`, the bits of a float32, read as an integer, keep its order. A row's count and weight of tokens
at or above eight pivots put the threshold between two of them; seven more between those two narrow that down; the
tokens still in doubt are written down, and one program a row searches among them, in eighths again:

    first tally     2**0 |      2**16 |   2**24 |  ...  | 2**36 | 2**38 | 2**40      fixed, closer near the top
    second tally               lo | | | | | | | | hi
    candidates                       lo | | hi       at most CAPACITY, else the row is read again each time

A top_k comes first, and the top_p of what it keeps is searched in the same bracket, which then spans both.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tlx

from lightllm.kernels.triton.sampling import SCALE, is_finite, scaled_probability

_ONE = 127 << 23
_END = ((127 + 40) << 23) + 1
FIRST_PIVOTS = [((127 + exponent) << 23) for exponent in (0, 16, 24, 28, 31, 34, 36, 38)] + [_END] * 8
"""Bits of v: below the first a token weighs nothing, and none reaches the ninth; the rest only fills up."""

STATE_SIZE = 5 * 16
"""int64 of a row, in rows of 16: counts and weights of the first tally, of the second, and the candidates written."""

LOWEST = tl.constexpr(_ONE)
SLOTS = tl.constexpr(16)
STATE = tl.constexpr(STATE_SIZE)


@triton.jit
def _at(values, index):
    """values[index] of a vector of 16."""
    return tl.sum(tl.where(tl.arange(0, SLOTS) == index, values, 0), 0)


@triton.jit
def _last(values, need):
    """The last of nine falling values that reaches `need`; the first one does."""
    return tl.sum(((values >= need) & (tl.arange(0, SLOTS) < 9)).to(tl.int32), 0) - 1


@triton.jit
def _share(top_p, total):
    """The weight that a top_p wants out of a total."""
    exact = top_p * total.to(tl.float64)
    need = exact.to(tl.int64)
    need += (need.to(tl.float64) < exact).to(tl.int64)
    return tl.maximum(tl.minimum(need, total), 1)


@triton.jit
def _bracket(counts, weights, all_count, all_weight, top_k, top_p):
    """Between which two of nine pivots, as indices, the thresholds lie, that of top_k and that of top_p."""
    limited = all_count > top_k
    kth = _last(counts, top_k)
    least = tl.where(limited, _at(weights, kth + 1), all_weight)
    most = tl.where(limited, _at(weights, kth), all_weight)
    low = tl.where(limited, kth, _last(weights, _share(top_p, most)))
    high = tl.where(top_p < 1, _last(weights, _share(top_p, least)), kth) + 1
    return low, high


@triton.jit
def _between(low, high, index):
    """Pivot `index` of nine from low to high."""
    return tl.minimum(low + ((high - low + 7) >> 3) * index, high)


@triton.jit
def _first_bracket(state, pivots, top_k, top_p):
    """The bracket of the first tally as bits, and the counts and weights at both ends."""
    slot = tl.arange(0, SLOTS)
    bits = tl.load(pivots + slot)
    counts = tl.load(state + slot)
    weights = tl.load(state + SLOTS + slot)
    low, high = _bracket(counts, weights, _at(counts, 0), _at(weights, 0), top_k, top_p)
    return (
        _at(bits, low),
        _at(bits, high),
        _at(counts, low),
        _at(counts, high),
        _at(weights, low),
        _at(weights, high),
    )


@triton.jit
def _second_bracket(state, low, high, top_k, top_p):
    """The bracket of the second tally, which spans low to high, and the counts and the weight at its ends."""
    slot = tl.arange(0, SLOTS)
    counts = tl.load(state + 2 * SLOTS + slot)
    weights = tl.load(state + 3 * SLOTS + slot)
    begin, end = _bracket(counts, weights, tl.load(state), tl.load(state + SLOTS), top_k, top_p)
    count = _at(counts, end)
    return _between(low, high, begin), _between(low, high, end), _at(counts, begin) - count, count, _at(weights, end)


@triton.jit
def _load_bits(logits, column, size, best, temperature, lowest):
    """Bits of v; 0 for tokens below `lowest`."""
    z = tl.load(logits + column, mask=column < size, other=-float("inf")).to(tl.float32)
    bits = scaled_probability(z, best, temperature).to(tl.int32, bitcast=True)
    return tl.where(bits >= lowest, bits, 0)


@triton.jit
def _weight(bits):
    return bits.to(tl.float32, bitcast=True).to(tl.int64)


@triton.jit
def _lowest_bits(min_p):
    return tl.maximum((min_p * SCALE).to(tl.int32, bitcast=True), LOWEST)


@triton.jit
def tally_kernel(
    logits,
    indices,
    best,
    temperatures,
    min_ps,
    top_ks,
    top_ps,
    pivots,
    states,
    row_stride,
    size,
    SECOND: tl.constexpr,
    HAS_INDICES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    block = tl.program_id(0)
    drawn = tl.program_id(1).to(tl.int64)
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    row = tl.load(indices + drawn) if HAS_INDICES else drawn
    top = tl.load(best + row)
    top_k = tl.load(top_ks + drawn)
    top_p = tl.load(top_ps + drawn)
    state = states + drawn * STATE
    wanted = ((top_k < size) | (top_p < 1)) & is_finite(top)
    if SECOND:
        wanted = wanted & ((tl.load(state) > top_k) | (top_p < 1))
    if wanted:
        slot = tl.arange(0, SLOTS)
        counts = tl.zeros([SLOTS], tl.int64)
        weights = tl.zeros([SLOTS], tl.int64)
        if SECOND:
            low, high, low_count, high_count, low_weight, high_weight = _first_bracket(state, pivots, top_k, top_p)
            if block == 0:
                counts = tl.where(slot == 0, low_count, tl.where(slot == 8, high_count, 0))
                weights = tl.where(slot == 0, low_weight, tl.where(slot == 8, high_weight, 0))
        column = block * BLOCK + tl.arange(0, BLOCK)
        lowest = _lowest_bits(tl.load(min_ps + drawn))
        bits = _load_bits(logits + row * row_stride, column, size, top, tl.load(temperatures + drawn), lowest)
        packed = _weight(bits) + (1 << 52)
        for index in tl.static_range(1 if SECOND else 0, 8):
            pivot = _between(low, high, index) if SECOND else tl.load(pivots + index)
            total = tl.sum(tl.where(bits >= pivot, packed, 0), 0)
            counts = tl.where(slot == index, (total >> 52) & 4095, counts)
            weights = tl.where(slot == index, total & ((1 << 52) - 1), weights)
        to = state + (2 * SLOTS if SECOND else 0) + slot
        tl.atomic_add(to, counts, mask=counts != 0, sem="relaxed")
        tl.atomic_add(to + SLOTS, weights, mask=weights != 0, sem="relaxed")


@triton.jit
def candidate_kernel(
    logits,
    indices,
    best,
    temperatures,
    min_ps,
    top_ks,
    top_ps,
    pivots,
    states,
    candidates,
    row_stride,
    size,
    HAS_INDICES: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    block = tl.program_id(0)
    drawn = tl.program_id(1).to(tl.int64)
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    row = tl.load(indices + drawn) if HAS_INDICES else drawn
    top = tl.load(best + row)
    top_k = tl.load(top_ks + drawn)
    top_p = tl.load(top_ps + drawn)
    state = states + drawn * STATE
    if is_finite(top) & ((tl.load(state) > top_k) | (top_p < 1)):
        low, high, _, _, _, _ = _first_bracket(state, pivots, top_k, top_p)
        low, high, doubtful, _, _ = _second_bracket(state, low, high, top_k, top_p)
        if doubtful <= CAPACITY:
            column = block * BLOCK + tl.arange(0, BLOCK)
            lowest = _lowest_bits(tl.load(min_ps + drawn))
            bits = _load_bits(logits + row * row_stride, column, size, top, tl.load(temperatures + drawn), lowest)
            inside = (bits >= tl.maximum(low, lowest)) & (bits < high)
            count = tl.sum(inside.to(tl.int32), 0)
            if count > 0:
                begin = tl.atomic_add(state + 4 * SLOTS, count.to(tl.int64), sem="relaxed")
                place = begin + tl.cumsum(inside.to(tl.int32), 0) - 1
                tl.store(candidates + drawn * CAPACITY + place, bits, mask=inside)


@triton.jit
def _sum_above(
    written,
    logits,
    number,
    listed,
    size,
    best,
    temperature,
    lowest,
    high,
    low,
    step_low,
    step_high,
    COUNT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Of the candidates, those from low to below high: count or weight [8] at or above each pivot but the last that
    span step_low to step_high. From what was written down or, when that was too much, from the logits."""
    pivots = _between(step_low, step_high, tl.arange(0, 8))
    offset = tl.arange(0, TILE)
    sums = tl.zeros([8, TILE], tl.int64)
    for start in tl.range(0, number, TILE):
        if listed:
            bits = tl.load(written + start + offset, mask=start + offset < number, other=0)
        else:
            bits = _load_bits(logits, start + offset, size, best, temperature, lowest)
            bits = tl.where((bits >= low) & (bits < high), bits, 0)
        value = (bits > 0).to(tl.int64) if COUNT else _weight(bits)
        sums += tl.where(bits[None, :] >= pivots[:, None], value[None, :], 0)
    return tl.sum(sums, 1)


@triton.jit
def threshold_kernel(
    logits,
    indices,
    best,
    temperatures,
    min_ps,
    top_ks,
    top_ps,
    pivots,
    states,
    candidates,
    cuts,
    row_stride,
    size,
    HAS_INDICES: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    drawn = tl.program_id(0).to(tl.int64)
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    row = tl.load(indices + drawn) if HAS_INDICES else drawn
    top = tl.load(best + row)
    top_k = tl.load(top_ks + drawn)
    top_p = tl.load(top_ps + drawn)
    min_p = tl.load(min_ps + drawn)
    state = states + drawn * STATE
    cut = min_p
    limited = tl.load(state) > top_k
    if is_finite(top) & (limited | (top_p < 1)):
        low, high, _, _, _, _ = _first_bracket(state, pivots, top_k, top_p)
        low, high, doubtful, count_above, weight_above = _second_bracket(state, low, high, top_k, top_p)
        lowest = _lowest_bits(min_p)
        listed = doubtful <= CAPACITY
        number = tl.where(listed, doubtful, size).to(tl.int32)
        written = candidates + drawn * CAPACITY
        own = logits + row * row_stride
        temperature = tl.load(temperatures + drawn)
        end = high
        begin = tl.maximum(low, lowest)
        weight = tl.load(state + SLOTS)
        if limited:
            while high - low > 1:
                sums = _sum_above(
                    written,
                    own,
                    number,
                    listed,
                    size,
                    top,
                    temperature,
                    lowest,
                    end,
                    begin,
                    low,
                    high,
                    True,
                    TILE,
                )
                index = tl.sum((sums + count_above >= top_k).to(tl.int32), 0) - 1
                low, high = _between(low, high, index), _between(low, high, index + 1)
            sums = _sum_above(
                written, own, number, listed, size, top, temperature, lowest, end, begin, low, end, False, TILE
            )
            weight = weight_above + tl.max(sums, 0)  # at or above the lowest pivot
        if top_p < 1:
            high = end
            need = _share(top_p, weight)
            while high - low > 1:
                sums = _sum_above(
                    written,
                    own,
                    number,
                    listed,
                    size,
                    top,
                    temperature,
                    lowest,
                    end,
                    begin,
                    low,
                    high,
                    False,
                    TILE,
                )
                index = tl.sum((sums + weight_above >= need).to(tl.int32), 0) - 1
                low, high = _between(low, high, index), _between(low, high, index + 1)
        cut = tl.maximum(low.to(tl.float32, bitcast=True) / SCALE, min_p)
    tl.store(cuts + drawn, cut)
