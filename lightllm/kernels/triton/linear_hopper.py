# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""The gated product of prompts on Hopper: activation(gate) * up, [gate, up] = x [M, K] @ weight [2 F, K].T, in Gluon.

4 M F K operations; for thousands of tokens bound by the matrix units, or by the power they draw. Beside the library's
product and an activation of its own, 6 M F bytes less each way are moved through memory. A tile has as many gates as
values for them to let through, so that both meet in the registers of one thread: HEIGHT times 64 tokens by 128 gates
and 128 ups, one consumer of four warps for each 64 tokens, which gates and stores by way of shared memory.

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
OUTPUTS = 128
"""Outputs of a tile, each of one row for the gate and one for up."""
HEIGHTS = {2: 2.0, 3: 2.95}
"""Consumers of a tile, and the time it takes: three read a fifth less from L2 for the same work, which is energy."""
STAGES = {2: 4, 3: 3}
"""What shared memory holds of x and weight at each height."""


@cache
def block_layout() -> gl.NVMMASharedLayout:
    """How the blocks lie in shared memory."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


def tile_height(num_tokens: int, num_outputs: int, num_programs: int) -> int:
    """The height of tiles with which the last program is done first."""

    def spent(height: int) -> float:
        tiles = -(-num_tokens // (height * BLOCK)) * -(-num_outputs // OUTPUTS)
        return -(-tiles // num_programs) * HEIGHTS[height]

    return min(HEIGHTS, key=spent)


@gluon.jit
def _activate(x, KIND: gl.constexpr):
    """As `activate`. While a tile ends the matrix units wait for the unit of exponentials and reciprocals, so that two
    neighbours share one reciprocal, of their product: 1 / a = b / (a b). Below -43 the weight of x stays 2 ** -62."""
    if KIND == "silu":
        return gl.inline_asm_elementwise(
            """{
            .reg .f32 a, b, r;
            mul.f32 a, $2, 0fBFB8AA3B;
            mul.f32 b, $3, 0fBFB8AA3B;
            min.f32 a, a, 0f42780000;
            min.f32 b, b, 0f42780000;
            ex2.approx.ftz.f32 a, a;
            ex2.approx.ftz.f32 b, b;
            add.f32 a, a, 0f3F800000;
            add.f32 b, b, 0f3F800000;
            mul.f32 r, a, b;
            rcp.approx.ftz.f32 r, r;
            mul.f32 a, a, r;
            mul.f32 b, b, r;
            mul.f32 b, $2, b;
            mul.f32 a, $3, a;
            mov.f32 $0, b;
            mov.f32 $1, a;
            }""",
            "=f,=f,f,f",
            [x],
            dtype=gl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        return activate(x, KIND)


@gluon.jit
def _place(tile, num_m, num_n, band):
    """The tile's row and column: band after band, through a band in columns; anything after the last tile."""
    first = tile // (band * num_n) * band
    height = gl.maximum(gl.minimum(num_m - first, band), 1)
    inside = tile % (band * num_n)
    return first + inside % height, inside // height


@gluon.jit
def _ask(asked, operands, sizes, ring, stage, HEIGHT: gl.constexpr):
    """Ask for the columns `asked` (tile, its place, block of columns), if they are there, and return those after them:
    the tile's next, or the first of this program's next tile."""
    x, weight, _ = operands
    xs, weights, _, ready, _ = ring
    BLOCK: gl.constexpr = xs.shape[1]
    OUTPUTS: gl.constexpr = weights.shape[1] // 2
    num_m, num_n, num_k, num_outputs, band = sizes
    tile, m, n, k = asked
    there = tile < num_m * num_n
    full = ready.index(stage)
    mbarrier.expect(full, (HEIGHT * BLOCK + 2 * OUTPUTS) * BLOCK * 2, pred=there)
    for part in gl.static_range(HEIGHT):
        to = xs.index(stage * HEIGHT + part)
        tma.async_copy_global_to_shared(x, [(m * HEIGHT + part) * BLOCK, k * BLOCK], full, to, pred=there)
    for half in gl.static_range(2):
        to = weights.index(stage).slice(half * OUTPUTS, OUTPUTS, dim=0)
        row = half * num_outputs + n * OUTPUTS
        tma.async_copy_global_to_shared(weight, [row, k * BLOCK], full, to, pred=there)
    k += 1
    if k == num_k:
        k = num_k * 0
        tile += gl.num_programs(0)
        m, n = _place(tile, num_m, num_n, band)
    return tile, m, n, k


@gluon.jit
def _consume(
    operands, sizes, ring, CONSUMER: gl.constexpr, HEIGHT: gl.constexpr, KIND: gl.constexpr, PDL: gl.constexpr
):  # fmt: skip
    _, _, out = operands
    num_m, num_n, num_k, _, band = sizes
    xs, weights, outs, ready, free = ring
    BLOCK: gl.constexpr = xs.shape[1]
    OUTPUTS: gl.constexpr = weights.shape[1] // 2
    STAGES: gl.constexpr = weights.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * OUTPUTS, 16])
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
        total = gl.zeros([BLOCK, 2 * OUTPUTS], gl.float32, layout=layout)
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
        gate, up = gl.split(total.reshape([BLOCK, 2, OUTPUTS]).permute((0, 2, 1)))
        result = (_activate(gate, KIND) * up).to(out.dtype)
        tma.store_wait(0)
        own.store(result)
        fence_async_shared()
        m, n = _place(tile, num_m, num_n, band)
        tma.async_copy_shared_to_global(out, [(m * HEIGHT + CONSUMER) * BLOCK, n * OUTPUTS], own)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_m", "num_n", "num_k", "num_outputs", "band"])
def gated_product_kernel(
    x,
    weight,
    out,
    num_m,
    num_n,
    num_k,
    num_outputs,
    band,
    HEIGHT: gl.constexpr,
    STAGES: gl.constexpr,
    KIND: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    # x, weight and out are tensor descriptors, of blocks [BLOCK, BLOCK], [OUTPUTS, BLOCK] and [BLOCK, OUTPUTS].
    dtype: gl.constexpr = x.dtype
    BLOCK: gl.constexpr = x.block_shape[0]
    OUTPUTS: gl.constexpr = weight.block_shape[0]
    xs = gl.allocate_shared_memory(dtype, [STAGES * HEIGHT, BLOCK, BLOCK], x.layout)
    weights = gl.allocate_shared_memory(dtype, [STAGES, 2 * OUTPUTS, BLOCK], weight.layout)
    outs = gl.allocate_shared_memory(dtype, [HEIGHT, BLOCK, OUTPUTS], out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(STAGES):
        mbarrier.init(ready.index(index), count=1)
        mbarrier.init(free.index(index), count=HEIGHT)
    fence_async_shared()
    operands, sizes, ring = (x, weight, out), (num_m, num_n, num_k, num_outputs, band), (xs, weights, outs, ready, free)
    if HEIGHT == 2:
        gl.warp_specialize(
            [
                (_consume, (operands, sizes, ring, 0, HEIGHT, KIND, PDL)),
                (_consume, (operands, sizes, ring, 1, HEIGHT, KIND, PDL)),
            ],
            [4],
            [240],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (operands, sizes, ring, 0, HEIGHT, KIND, PDL)),
                (_consume, (operands, sizes, ring, 1, HEIGHT, KIND, PDL)),
                (_consume, (operands, sizes, ring, 2, HEIGHT, KIND, PDL)),
            ],
            [4, 4],
            [168, 168],
        )
