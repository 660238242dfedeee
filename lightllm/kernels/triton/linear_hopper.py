# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""The gated product of prompts on Hopper: activation(gate) * up, [gate, up] = x [M, K] @ weight [2 F, K].T, in Gluon.

4 M F K operations; for thousands of tokens bound by the matrix units, or by the power they draw. Beside the library's
product and an activation of its own, 6 M F bytes less each way are moved through memory. A tile has as many gates as
values for them to let through, so that both meet in the registers of one thread:

    producer (1 warp)     asks for blocks of x [128, 64] and of weight [128 gates + 128 up, 64], four stages (TMA)
    consumers (2 x 4)     64 tokens each by all 256 rows; gate, store by way of shared memory (TMA)

A program stays and takes tile after tile, so that the next one's blocks are under way during a tile's end. Tiles of
`BAND` blocks of tokens are taken together: what the programs read at a time then fits the L2 cache.
Outputs beyond an edge, made of zeros or of other rows, are not stored: the copy engine knows the tensors' sizes.
"""

from __future__ import annotations

from functools import cache

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra import cuda as tlx

from lightllm.kernels.triton.activation import activate

BLOCK_M = 128
BLOCK_N = 128
"""Outputs of a tile, each of one row for the gate and one for up."""
BLOCK_K = 64
STAGES = 4


@cache
def block_layout() -> gl.NVMMASharedLayout:
    """How the blocks lie in shared memory."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def _place(tile, num_m, num_n, BAND: gl.constexpr):
    """The tile's block of tokens and of outputs: band after band, through a band in columns."""
    first = tile // (BAND * num_n) * BAND
    height = gl.minimum(num_m - first, BAND)
    inside = tile % (BAND * num_n)
    return first + inside % height, inside // height


@gluon.jit
def _produce(
    x, weight, num_m, num_n, num_k, num_outputs, xs, weights, ready, free, BAND: gl.constexpr, PDL: gl.constexpr
):  # fmt: skip
    BLOCK_M: gl.constexpr = xs.shape[1]
    BLOCK_N: gl.constexpr = weights.shape[1] // 2
    BLOCK_K: gl.constexpr = xs.shape[2]
    STAGES: gl.constexpr = xs.shape[0]
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    turn = 0
    for tile in range(gl.program_id(0), num_m * num_n, gl.num_programs(0)):
        m, n = _place(tile, num_m, num_n, BAND)
        for k in range(num_k):
            stage = turn % STAGES
            mbarrier.wait(free.index(stage), ((turn // STAGES) & 1) ^ 1)
            full = ready.index(stage)
            mbarrier.expect(full, (BLOCK_M + 2 * BLOCK_N) * BLOCK_K * 2)
            gates = weights.index(stage).slice(0, BLOCK_N, dim=0)
            ups = weights.index(stage).slice(BLOCK_N, BLOCK_N, dim=0)
            tma.async_copy_global_to_shared(x, [m * BLOCK_M, k * BLOCK_K], full, xs.index(stage))
            tma.async_copy_global_to_shared(weight, [n * BLOCK_N, k * BLOCK_K], full, gates)
            tma.async_copy_global_to_shared(weight, [num_outputs + n * BLOCK_N, k * BLOCK_K], full, ups)
            turn += 1


@gluon.jit
def _consume(
    out, num_m, num_n, num_k, xs, weights, outs, ready, free, WARP_GROUP: gl.constexpr, KIND: gl.constexpr,
    BAND: gl.constexpr,
):  # fmt: skip
    BLOCK_M: gl.constexpr = xs.shape[1]
    BLOCK_N: gl.constexpr = weights.shape[1] // 2
    STAGES: gl.constexpr = xs.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * BLOCK_N, 16])
    own = outs.index(WARP_GROUP)
    turn = 0
    for tile in range(gl.program_id(0), num_m * num_n, gl.num_programs(0)):
        m, n = _place(tile, num_m, num_n, BAND)
        total = gl.zeros([64, 2 * BLOCK_N], gl.float32, layout=layout)
        for k in range(num_k):
            stage = turn % STAGES
            mbarrier.wait(ready.index(stage), (turn // STAGES) & 1)
            rows = xs.index(stage).slice(WARP_GROUP * 64, 64, dim=0)
            total = warpgroup_mma(rows, weights.index(stage).permute((1, 0)), total, is_async=True)
            total = warpgroup_mma_wait(1, deps=[total])
            mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1, pred=k > 0)
            turn += 1
        total = warpgroup_mma_wait(0, deps=[total])
        mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1)
        gate, up = gl.split(total.reshape([64, 2, BLOCK_N]).permute((0, 2, 1)))
        result = (activate(gate, KIND) * up).to(out.dtype)
        tma.store_wait(0)
        own.store(result)
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [m * BLOCK_M + WARP_GROUP * 64, n * BLOCK_N], own)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_m"])
def gated_product_kernel(
    x,
    weight,
    out,
    num_m,
    num_n,
    num_k,
    num_outputs,
    STAGES: gl.constexpr,
    KIND: gl.constexpr,
    BAND: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    # x, weight and out are tensor descriptors, of blocks [BLOCK_M, BLOCK_K], [BLOCK_N, BLOCK_K] and [64, BLOCK_N].
    dtype: gl.constexpr = x.dtype
    BLOCK_M: gl.constexpr = x.block_shape[0]
    BLOCK_N: gl.constexpr = weight.block_shape[0]
    BLOCK_K: gl.constexpr = x.block_shape[1]
    xs = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, BLOCK_K], x.layout)
    weights = gl.allocate_shared_memory(dtype, [STAGES, 2 * BLOCK_N, BLOCK_K], weight.layout)
    outs = gl.allocate_shared_memory(dtype, [2, 64, BLOCK_N], out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(STAGES):
        mbarrier.init(ready.index(index), count=1)
        mbarrier.init(free.index(index), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consume, (out, num_m, num_n, num_k, xs, weights, outs, ready, free, 0, KIND, BAND)),
            (_consume, (out, num_m, num_n, num_k, xs, weights, outs, ready, free, 1, KIND, BAND)),
            (_produce, (x, weight, num_m, num_n, num_k, num_outputs, xs, weights, ready, free, BAND, PDL)),
        ],
        [4, 1],
        [216, 40],
    )
