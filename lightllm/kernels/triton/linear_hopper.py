# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Products of prompts on Hopper, in Gluon: x [M, K] @ weight [N, K].T, or activation(gate) * up of [gate, up] = that.

2 M N K operations; for thousands of tokens bound by the matrix units, or by the power they draw. A tile is HEIGHT times
64 tokens by 256 rows of the weight, one consumer of four warps for each 64 tokens, which stores by way of shared
memory. Of a gated product these rows are 128 gates and 128 ups, so that both meet in the registers of one thread:
beside the library's product and an activation of its own, 3 M N bytes less each way are moved through memory.

The copy engine brings blocks of x and weight into a ring. The first consumer asks for them, since a producer beside
three consumers would leave them 128 registers each, which the sums alone fill: while its product of one turn runs, it
asks for what fits where the turn before was. A program stays and takes tile after tile, and what it asks for runs ahead
into the next tile. `band` rows of tiles are taken together: what the programs read at a time then fits the L2 cache.
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

BLOCK = 64
"""Tokens of a consumer; rows and columns that the copy engine brings at a time."""
ROWS = 256
"""Rows of the weight of a tile, in halves: next to each other, or gates and ups."""
HEIGHTS = {2: 2.0, 3: 2.95}
"""Consumers of a tile, and the time it takes: three read a fifth less from L2 for the same work, which is energy."""
STAGES = {2: 4, 3: 3}
"""What shared memory holds of x and weight at each height."""


@cache
def block_layout() -> gl.NVMMASharedLayout:
    """How the blocks lie in shared memory."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


def tile_height(num_tokens: int, num_rows: int, num_programs: int) -> tuple[int, float]:
    """The height of tiles with which the last program is done first, and the share of the programs' time that is work:
    the rest is their waiting for the last one, and the empty parts of tiles."""
    work = num_tokens * num_rows / (BLOCK * ROWS) / num_programs

    def rounds(height: int) -> int:
        tiles = -(-num_tokens // (height * BLOCK)) * -(-num_rows // ROWS)
        return -(-tiles // num_programs)

    height = min(HEIGHTS, key=lambda height: rounds(height) * HEIGHTS[height])
    return height, work / (rounds(height) * height)


@gluon.jit
def _place(tile, num_m, num_n, band):
    """The tile's row and column: band after band, through a band in columns."""
    first = tile // (band * num_n) * band
    height = gl.minimum(num_m - first, band)
    inside = tile % (band * num_n)
    return first + inside % height, inside // height


@gluon.jit
def _ask(asked, operands, sizes, ring, stage, HEIGHT: gl.constexpr):
    """Ask for the columns `asked` (tile, its place, block of columns), if they are there, and return those after them:
    the tile's next, or the first of this program's next tile."""
    x, weight, _ = operands
    xs, weights, _, ready, _ = ring
    num_m, num_n, num_k, column_step, half_step, band = sizes
    BLOCK: gl.constexpr = xs.shape[1]
    HALF: gl.constexpr = weights.shape[1] // 2
    tile, m, n, k = asked
    there = tile < num_m * num_n
    full = ready.index(stage)
    mbarrier.expect(full, (HEIGHT * BLOCK + 2 * HALF) * BLOCK * 2, pred=there)
    for part in gl.static_range(HEIGHT):
        to = xs.index(stage * HEIGHT + part)
        tma.async_copy_global_to_shared(x, [(m * HEIGHT + part) * BLOCK, k * BLOCK], full, to, pred=there)
    for half in gl.static_range(2):
        to = weights.index(stage).slice(half * HALF, HALF, dim=0)
        row = n * column_step + half * half_step
        tma.async_copy_global_to_shared(weight, [row, k * BLOCK], full, to, pred=there)
    k += 1
    if k == num_k:
        k = num_k * 0
        tile += gl.num_programs(0)
        m, n = _place(tile, num_m, num_n, band)
    return tile, m, n, k


@gluon.jit
def _store(value, out, row, column, own):
    """Store a consumer's part of a tile once what it stored before has left shared memory."""
    tma.store_wait(0)
    own.store(value.to(out.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out, [row, column], own)


@gluon.jit
def _consume(
    operands, sizes, ring, CONSUMER: gl.constexpr, HEIGHT: gl.constexpr, GATED: gl.constexpr, PDL: gl.constexpr
):  # fmt: skip
    _, _, out = operands
    xs, weights, outs, ready, free = ring
    num_m, num_n, num_k, _, _, band = sizes
    BLOCK: gl.constexpr = xs.shape[1]
    HALF: gl.constexpr = weights.shape[1] // 2
    STAGES: gl.constexpr = weights.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * HALF, 16])
    own = outs.index(CONSUMER)
    m, n = _place(gl.program_id(0), num_m, num_n, band)
    asked = (gl.program_id(0), m, n, num_k * 0)
    if CONSUMER == 0:
        if PDL:
            tlx.gdc_launch_dependents()
            tlx.gdc_wait()
        for early in gl.static_range(STAGES - 1):
            asked = _ask(asked, operands, sizes, ring, early, HEIGHT)
    turn = 0
    for tile in range(gl.program_id(0), num_m * num_n, gl.num_programs(0)):
        total = gl.zeros([BLOCK, 2 * HALF], gl.float32, layout=layout)
        for k in range(num_k):
            stage, before = turn % STAGES, (turn + STAGES - 1) % STAGES
            mbarrier.wait(ready.index(stage), (turn // STAGES) & 1)
            rows = weights.index(stage).permute((1, 0))
            total = warpgroup_mma(xs.index(stage * HEIGHT + CONSUMER), rows, total, is_async=True)
            total = warpgroup_mma_wait(1, deps=[total])
            mbarrier.arrive(free.index(before), count=1, pred=k > 0)
            if CONSUMER == 0:
                if turn > 0:
                    mbarrier.wait(free.index(before), ((turn - 1) // STAGES) & 1)
                asked = _ask(asked, operands, sizes, ring, before, HEIGHT)
            turn += 1
        total = warpgroup_mma_wait(0, deps=[total])
        mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1)
        first, second = gl.split(total.reshape([BLOCK, 2, HALF]).permute((0, 2, 1)))
        m, n = _place(tile, num_m, num_n, band)
        row = (m * HEIGHT + CONSUMER) * BLOCK
        if GATED != "":
            _store(activate(first, GATED) * second, out, row, n * HALF, own)
        else:
            _store(first, out, row, n * 2 * HALF, own)
            _store(second, out, row, n * 2 * HALF + HALF, own)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_m", "num_n", "num_k", "column_step", "half_step", "band"])
def prompt_product_kernel(
    x,
    weight,
    out,
    num_m,
    num_n,
    num_k,
    column_step,
    half_step,
    band,
    HEIGHT: gl.constexpr,
    STAGES: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    # x, weight and out are tensor descriptors, of blocks [BLOCK, BLOCK], [ROWS // 2, BLOCK] and [BLOCK, ROWS // 2].
    # num_m x num_n tiles; the halves of a tile's rows begin half_step apart, those of the next column column_step on.
    dtype: gl.constexpr = x.dtype
    BLOCK: gl.constexpr = x.block_shape[0]
    HALF: gl.constexpr = weight.block_shape[0]
    xs = gl.allocate_shared_memory(dtype, [STAGES * HEIGHT, BLOCK, BLOCK], x.layout)
    weights = gl.allocate_shared_memory(dtype, [STAGES, 2 * HALF, BLOCK], weight.layout)
    outs = gl.allocate_shared_memory(dtype, [HEIGHT, BLOCK, HALF], out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(STAGES):
        mbarrier.init(ready.index(index), count=1)
        mbarrier.init(free.index(index), count=HEIGHT)
    fence_async_shared()
    operands, ring = (x, weight, out), (xs, weights, outs, ready, free)
    sizes = (num_m, num_n, num_k, column_step, half_step, band)
    if HEIGHT == 2:
        gl.warp_specialize(
            [
                (_consume, (operands, sizes, ring, 0, HEIGHT, GATED, PDL)),
                (_consume, (operands, sizes, ring, 1, HEIGHT, GATED, PDL)),
            ],
            [4],
            [240],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (operands, sizes, ring, 0, HEIGHT, GATED, PDL)),
                (_consume, (operands, sizes, ring, 1, HEIGHT, GATED, PDL)),
                (_consume, (operands, sizes, ring, 2, HEIGHT, GATED, PDL)),
            ],
            [4, 4],
            [168, 168],
        )
