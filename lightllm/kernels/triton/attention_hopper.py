# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Attention of prompt chunks on Hopper: `attention_kernel` written for warp groups, in Gluon.

4 Hq D L (P + L/2) operations for L tokens after P cached ones, and per tile of 128 rows one read of the keys and
values from the L2 cache: 512 D operations a byte, so bound by the matrix units and the exponentials between them.

    producer (4 warps)    gathers queries, and keys and values by slot, into two-stage buffers (cp.async)
    consumers (2 x 4)     64 rows each: scores of block i while the values of block i - 1 are multiplied

as in FlashAttention-3 (arXiv 2407.08608, section 3), but keys come by slot, one row each, not by tensor copies. Blocks
of keys are taken from the last to the first, so that those under the causal mask come first. A program stays for many
tiles (the host shares them out), so the loads of one run during the other's end.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra import cuda as tlx

BLOCK_KEYS = 128
LOWEST = gl.constexpr(-1.0e38)


@gluon.jit
def _find(slots, start, last, BLOCK_N: gl.constexpr, HEAD_DIM: gl.constexpr):
    """The slots of keys start .. start + BLOCK_N - 1 (beyond `last`: that one's), as `_gather` takes them."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    row = start + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, layout))
    return gl.load(slots + gl.minimum(row, last))


@gluon.jit
def _gather(cache, found, buffer, kv_head, cache_stride, HEAD_DIM: gl.constexpr):
    """Ask for the rows at the slots found."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, layout))
    place = found.to(gl.int64) * cache_stride
    async_copy.async_copy_global_to_shared(buffer, cache + kv_head * HEAD_DIM + place[:, None] + dim[None, :])


@gluon.jit
def _gather_queries(
    q, buffer, first_token, count, kv_head, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr
):
    """Ask for a tile's queries [128, D]; rows beyond its tokens repeat the last one."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, layout))
    row = gl.minimum(gl.arange(0, 128, layout=gl.SliceLayout(1, layout)), count * GROUP - 1)
    place = (first_token + row // GROUP).to(gl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP
    async_copy.async_copy_global_to_shared(buffer, q + (place * HEAD_DIM)[:, None] + dim[None, :])


@gluon.jit
def _read_unit(items, units, lap, num_laps, KV_HEADS: gl.constexpr, ITEM_SIZE: gl.constexpr):
    """A program's unit in this lap: where its item is, the key/value head, the item's tokens, first key and end of
    keys; no tokens after the program's last unit."""
    number = gl.load(units + lap * gl.num_programs(0) + gl.program_id(0), mask=lap < num_laps, other=0)
    unit = gl.maximum(number - 1, 0)
    item = items + unit // KV_HEADS * ITEM_SIZE
    count = gl.load(item + 2, mask=number > 0, other=0)
    return item, unit % KV_HEADS, count, gl.load(item + 4), gl.load(item + 5)


@gluon.jit
def _produce(
    q, k_cache, v_cache, table, items, units, table_stride, cache_stride, num_laps, queries, keys, values, ready, free,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, ITEM_SIZE: gl.constexpr, BLOCK_N: gl.constexpr,
    HEAD_DIM: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    if PDL:
        tlx.gdc_launch_dependents()
    turn = 0
    lap = 0
    item, kv_head, count, low, high = _read_unit(items, units, 0, num_laps, KV_HEADS, ITEM_SIZE)
    first_token = gl.load(item)
    slots = table + gl.load(item + 3).to(gl.int64) * table_stride
    if PDL:
        tlx.gdc_wait()
    while count > 0:
        num_blocks = gl.cdiv(high - low, BLOCK_N)
        start = low + (num_blocks - 1) * BLOCK_N
        found = _find(slots, start, high - 1, BLOCK_N, HEAD_DIM)
        side = lap % 2
        mbarrier.wait(free.index(4 + side), ((lap // 2) & 1) ^ 1)
        _gather_queries(q, queries.index(side), first_token, count, kv_head, KV_HEADS, GROUP, HEAD_DIM)
        async_copy.mbarrier_arrive(ready.index(4 + side), increment_count=False)
        lap += 1
        item, next_head, next_count, next_low, next_high = _read_unit(items, units, lap, num_laps, KV_HEADS, ITEM_SIZE)
        first_token = gl.load(item)
        next_slots = table + gl.load(item + 3).to(gl.int64) * table_stride
        for _ in range(num_blocks):
            stage = turn % 2
            phase = (turn // 2) & 1
            start = gl.maximum(start - BLOCK_N, low)
            found_next = _find(slots, start, high - 1, BLOCK_N, HEAD_DIM)
            mbarrier.wait(free.index(stage), phase ^ 1)
            _gather(k_cache, found, keys.index(stage), kv_head, cache_stride, HEAD_DIM)
            async_copy.mbarrier_arrive(ready.index(stage), increment_count=False)
            mbarrier.wait(free.index(2 + stage), phase ^ 1)
            _gather(v_cache, found, values.index(stage), kv_head, cache_stride, HEAD_DIM)
            async_copy.mbarrier_arrive(ready.index(2 + stage), increment_count=False)
            found = found_next
            turn += 1
        kv_head = next_head
        count = next_count
        low = next_low
        high = next_high
        slots = next_slots


@gluon.jit
def _mask(scores, last_seen, start, edge, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """A block's raw scores [64, BLOCK_N], those of keys that a row does not see lowered. Keys before `edge` are seen by
    all rows."""
    if start + BLOCK_N > edge:
        column = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
        scores = gl.where(column[None, :] <= (last_seen - start)[:, None], scores, float("-inf"))
    return scores


@gluon.jit
def _soften(scores, highest, total, scale):
    """Weights of a block's raw scores [64, BLOCK_N], and the running maximum and total after it."""
    new_highest = gl.maximum(highest, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - new_highest[:, None])
    rescale = gl.exp2(highest - new_highest)
    return weights, new_highest, total * rescale + gl.sum(weights, 1), rescale


@gluon.jit
def _consume(
    items, units, out, partial_values, partial_weights, scale, num_laps, queries, keys, values, ready, free,
    WARP_GROUP: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, ITEM_SIZE: gl.constexpr,
    BLOCK_N: gl.constexpr, HEAD_DIM: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = out.dtype.element_ty
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    store_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    nothing = gl.zeros([64, BLOCK_N], gl.float32, layout=score_layout)
    turn = 0
    lap = 0
    item, kv_head, count, low, high = _read_unit(items, units, 0, num_laps, KV_HEADS, ITEM_SIZE)
    first_position = gl.load(item + 1)
    while count > 0:
        side = lap % 2
        lap += 1
        next_item, next_head, next_count, next_low, next_high = _read_unit(
            items, units, lap, num_laps, KV_HEADS, ITEM_SIZE
        )
        next_position = gl.load(next_item + 1)

        num_blocks = gl.cdiv(high - low, BLOCK_N)
        row = gl.arange(0, 64, layout=gl.SliceLayout(1, score_layout)) + WARP_GROUP * 64
        last_seen = gl.minimum(first_position + gl.minimum(row // GROUP, count - 1), high - 1)
        edge = gl.minimum(first_position + 1, high)
        highest = gl.full([64], LOWEST, gl.float32, layout=gl.SliceLayout(1, score_layout))
        total = gl.full([64], 0.0, gl.float32, layout=gl.SliceLayout(1, score_layout))
        accumulator = gl.zeros([64, HEAD_DIM], gl.float32, layout=out_layout)
        own = queries.index(side).slice(WARP_GROUP * 64, 64, dim=0)

        start = low + (num_blocks - 1) * BLOCK_N
        stage = turn % 2
        mbarrier.wait(ready.index(4 + side), ((lap - 1) // 2) & 1)
        mbarrier.wait(ready.index(stage), (turn // 2) & 1)
        fence_async_shared()
        scores = warpgroup_mma(own, keys.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(free.index(stage), count=1)
        scores = _mask(scores, last_seen, start, edge, BLOCK_N, score_layout)
        weights, highest, total, rescale = _soften(scores, highest, total, scale)
        packed = gl.convert_layout(weights.to(dtype), weight_layout)
        for _ in range(1, num_blocks):
            before = turn % 2
            before_phase = (turn // 2) & 1
            turn += 1
            stage = turn % 2
            start -= BLOCK_N
            mbarrier.wait(ready.index(stage), (turn // 2) & 1)
            mbarrier.wait(ready.index(2 + before), before_phase)
            fence_async_shared()
            scores = warpgroup_mma(own, keys.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
            accumulator = warpgroup_mma(packed, values.index(before), accumulator, is_async=True)
            scores = warpgroup_mma_wait(1, deps=[scores])
            mbarrier.arrive(free.index(stage), count=1)
            scores = _mask(scores, last_seen, start, edge, BLOCK_N, score_layout)
            weights, highest, total, rescale = _soften(scores, highest, total, scale)
            accumulator = warpgroup_mma_wait(0, deps=[accumulator])
            mbarrier.arrive(free.index(2 + before), count=1)
            accumulator = accumulator * gl.convert_layout(rescale, gl.SliceLayout(1, out_layout))[:, None]
            packed = gl.convert_layout(weights.to(dtype), weight_layout)
        last = turn % 2
        mbarrier.wait(ready.index(2 + last), (turn // 2) & 1)
        fence_async_shared()
        accumulator = warpgroup_mma(packed, values.index(last), accumulator, is_async=True)
        accumulator = warpgroup_mma_wait(0, deps=[accumulator])
        mbarrier.arrive(free.index(2 + last), count=1)
        turn += 1

        total = gl.where(total > 0, total, 1.0)
        result = accumulator / gl.convert_layout(total, gl.SliceLayout(1, out_layout))[:, None]
        if gl.load(item + 7) == 1:
            own.store(result.to(dtype))  # the queries are read: their place takes the rows to be stored whole
            rows = own.load(store_layout)
            gl.thread_barrier()
            mbarrier.arrive(free.index(4 + side), count=1)
            whole_row = gl.arange(0, 64, layout=gl.SliceLayout(1, store_layout)) + WARP_GROUP * 64
            whole_dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, store_layout))
            place = (gl.load(item).to(gl.int64) + whole_row // GROUP) * (KV_HEADS * GROUP)
            place += kv_head * GROUP + whole_row % GROUP
            stored = whole_row < count * GROUP
            gl.store(out + (place * HEAD_DIM)[:, None] + whole_dim[None, :], rows, mask=stored[:, None])
        else:
            mbarrier.arrive(free.index(4 + side), count=1)
            own_row = gl.arange(0, 64, layout=gl.SliceLayout(1, out_layout)) + WARP_GROUP * 64
            dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, out_layout))
            inside = own_row < count * GROUP
            part = (gl.load(item + 6) * KV_HEADS + kv_head).to(gl.int64) * 128 + own_row
            gl.store(partial_values + (part * HEAD_DIM)[:, None] + dim[None, :], result, mask=inside[:, None])
            weight = gl.convert_layout(highest + gl.log2(total), gl.SliceLayout(1, out_layout))
            gl.store(partial_weights + part, weight, mask=inside)
        item = next_item
        kv_head = next_head
        count = next_count
        first_position = next_position
        low = next_low
        high = next_high


@gluon.jit(do_not_specialize=["num_laps"])
def attention_hopper_kernel(
    q,
    k_cache,
    v_cache,
    table,
    items,
    units,
    out,
    partial_values,
    partial_weights,
    table_stride,
    cache_stride,
    scale,
    num_laps,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    ITEM_SIZE: gl.constexpr,
    BLOCK_N: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    # units [num_laps, programs]: see `share_units`. Other tensors as in `attention_kernel` with BLOCK_M = 128. scale
    # includes log2(e) and must be positive. Barriers: two stages of keys, two of values, two of queries.
    dtype: gl.constexpr = q.dtype.element_ty
    shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    queries = gl.allocate_shared_memory(dtype, [2, 128, HEAD_DIM], shared)
    keys = gl.allocate_shared_memory(dtype, [2, BLOCK_N, HEAD_DIM], shared)
    values = gl.allocate_shared_memory(dtype, [2, BLOCK_N, HEAD_DIM], shared)
    ready = gl.allocate_shared_memory(gl.int64, [6, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [6, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(6):
        mbarrier.init(ready.index(index), count=128)
        mbarrier.init(free.index(index), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consume, (
                items, units, out, partial_values, partial_weights, scale, num_laps, queries, keys, values, ready, free,
                0, KV_HEADS, GROUP, ITEM_SIZE, BLOCK_N, HEAD_DIM,
            )),
            (_consume, (
                items, units, out, partial_values, partial_weights, scale, num_laps, queries, keys, values, ready, free,
                1, KV_HEADS, GROUP, ITEM_SIZE, BLOCK_N, HEAD_DIM,
            )),
            (_produce, (
                q, k_cache, v_cache, table, items, units, table_stride, cache_stride, num_laps, queries, keys, values,
                ready, free, KV_HEADS, GROUP, ITEM_SIZE, BLOCK_N, HEAD_DIM, PDL,
            )),
        ],
        [4, 4],
        [216, 72],
    )  # fmt: skip
