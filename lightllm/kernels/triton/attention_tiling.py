"""The sizes that the attention kernels are built for: rows of a tile, keys of a block, warps, stages. No torch."""

from __future__ import annotations

from dataclasses import dataclass

SMALL_ROWS = 16
"""Rows of a tile of decodes, if a key/value head has no more query heads."""
LARGE_ROWS = (64, 128)
"""Rows of a tile of chunks, of short ones and of long ones."""
HOPPER_ROWS = 128
HOPPER_HEADS = (64, 128)
"""Tile and head sizes of the kernel for Hopper."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernel is built for tiles of so many rows: block of keys, warps, pipeline stages, programs that run at
    once on a multiprocessor."""

    rows: int
    block_n: int
    num_warps: int
    num_stages: int
    occupancy: int


ROOMY = 160 << 10
"""Bytes of shared memory from which the deeper pipelines fit: A100, H100 and later, not the smaller Ampere and Ada."""


def tiling_for(rows: int, head_dim: int, shared_bytes: int) -> Tiling:
    """The tiling measured best on an H200, or one that fits where there is less shared memory."""
    if head_dim > 128:
        block_n = 32 if rows <= 64 or shared_bytes >= ROOMY else 16
        return Tiling(rows, block_n, 8 if rows > 64 else 4, 3 if shared_bytes >= ROOMY else 2, 1)
    if shared_bytes < ROOMY:
        return Tiling(rows, 64 if rows <= 64 else 32, 4 if rows <= 64 else 8, 3, 2)
    if rows <= 32:
        return Tiling(rows, 64, 2, 7, 2)
    return Tiling(rows, 64, 4, 3, 2) if rows == 64 else Tiling(rows, 64, 8, 5, 1)
