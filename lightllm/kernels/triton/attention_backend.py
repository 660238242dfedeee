"""The attention backend of CUDA devices: plans on the host, one or two launches of `attention_kernel` per layer.

A step's decodes go into tiles of 16 rows, its longer chunks into tiles of 64 or 128, each kind one launch. A step
replayed from a CUDA graph uses buffers made ahead (`make_buffers`): the launch covers the most items the bucket can
have, and items that are not there end at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm.kernels.ops.contracts import AttentionParams, HeadShape, Int32, SequenceLayout
from lightllm.kernels.transfer import Transfer, Uploaded
from lightllm.kernels.triton.attention import attention_kernel, merge_kernel
from lightllm.kernels.triton.attention_plan import (
    COUNT,
    ITEM_SIZE,
    MERGE_COUNT,
    MERGE_NUM_PARTS,
    MERGE_SIZE,
    DecodeItems,
    TileShape,
    laps_of,
    make_items,
    padding_items,
    share_units,
)
from lightllm.kernels.triton.attention_tiling import (
    HOPPER_HEADS,
    HOPPER_ROWS,
    LARGE_ROWS,
    SMALL_ROWS,
    Tiling,
    tiling_for,
)
from lightllm.kernels.triton.launch import launcher_for, next_power_of_2

MOST_NARROW = 2**31 - 1
"""Elements of a cache that an int32 can count: addresses are then made in half the instructions."""
LOG2_E = 1.4426950408889634
CACHE_BYTES = 24 << 20
"""Keys and values that tiles at work at the same time may share: half the L2 cache of an H100 or H200."""
MOST_PARTS = 16
"""Parts that two warps merge at a time. Decodes in few parts are merged by one, which need not exchange anything."""
MERGING_PROGRAMS = 2
"""Programs on each multiprocessor that merge parts: in most steps of most sizes they find nothing to merge."""


def is_wide(cache: Tensor) -> bool:
    """Whether an int32 cannot count the elements of a cache [N, Hk, D]."""
    return cache.shape[0] * cache.stride(0) > MOST_NARROW


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where the parts of split tiles wait for their merge: normalised values [rows, D], log2 of weights [rows]."""

    values: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class TileLaunch:
    """One kind of tile: its items [I, ITEM_SIZE], merges [J, MERGE_SIZE] and, where programs stay for many items, the
    units of each [laps, programs], on the device as one int32 array `work`; the most tokens of a tile, and of one that
    is merged."""

    work: Tensor
    num_items: int
    num_merges: int
    num_programs: int
    most_tokens: int
    most_merged: int
    tiling: Tiling
    scratch: Scratch

    @property
    def items(self) -> Tensor:
        return self.work[: self.num_items * ITEM_SIZE]

    @property
    def merges(self) -> Tensor:
        begin = self.num_items * ITEM_SIZE
        return self.work[begin : begin + self.num_merges * MERGE_SIZE]

    @property
    def units(self) -> Tensor:
        return self.work[self.num_items * ITEM_SIZE + self.num_merges * MERGE_SIZE :]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    table: Tensor
    launches: tuple[TileLaunch, ...]


@dataclass(frozen=True, slots=True)
class PlanBuffers:
    """A plan whose items are written anew each step, for CUDA graphs. `plan` goes to `run`; its launches are
    the small tiles and, if the bucket may hold chunks, the large ones."""

    plan: AttentionPlan
    max_sequences: int
    max_tokens: int
    decodes: DecodeItems


class TritonAttention:
    """`AttentionBackend` for one shape of heads."""

    def __init__(
        self, shape: HeadShape, device: torch.device, tiling: Callable[[int, int, int], Tiling] = tiling_for
    ) -> None:
        self._shape = shape
        self._device = device
        self._choose_tiling = tiling
        self._launcher = launcher_for(device)
        self._block_d = max(16, next_power_of_2(shape.head_dim))
        self._small_rows = max(SMALL_ROWS, next_power_of_2(shape.group))
        self._scratch: Scratch | None = None

    def plan(self, layout: SequenceLayout, table: Tensor) -> AttentionPlan:
        transfer, tiles = Transfer(self._device), []
        for rows, members in self._by_rows(layout):
            tiling = self._tiling(rows)
            items, merges = make_items(layout, members, self._tile_shape(tiling))
            parts = [items.ravel(), merges.ravel()]
            num_programs = self._staying_programs(tiling, len(items))
            if num_programs:
                parts.append(share_units(items, self._shape.num_kv_heads, num_programs).ravel())
            tiles.append((tiling, items, merges, num_programs, transfer.add(np.concatenate(parts))))
        transfer.send()
        return AttentionPlan(table, tuple(self._tile_launch(*tile) for tile in tiles))

    def _tile_launch(
        self, tiling: Tiling, items: Int32, merges: Int32, num_programs: int, work: Uploaded
    ) -> TileLaunch:
        scratch = self._scratch_for(int(merges[:, MERGE_NUM_PARTS].sum()), tiling)
        most = int(items[:, COUNT].max()), int(merges[:, MERGE_COUNT].max(initial=1))
        return TileLaunch(work.tensor, len(items), len(merges), num_programs, *most, tiling, scratch)

    def reserve(self, max_sequences: int, max_tokens: int) -> None:
        """Make the scratch that any step of at most so many sequences and tokens may need."""
        for rows in {self._small_rows, *(max(rows, self._small_rows) for rows in LARGE_ROWS)}:
            tiling = self._tiling(rows)
            shape = self._tile_shape(tiling)
            self._scratch_for(shape.most_parts(max_sequences + max_tokens // shape.tokens), tiling)

    def buffer_size(self, max_sequences: int, max_tokens: int) -> int:
        """The int32s that `make_buffers` needs for as much."""
        tiles = self._most_tiles(max_sequences, max_tokens)
        return sum(self._launch_size(self._tiling(rows), most) for rows, most in tiles.items())

    def make_buffers(self, max_sequences: int, max_tokens: int, table: Tensor, memory: Tensor) -> PlanBuffers:
        """Buffers for at most this many sequences and tokens (as many tokens as sequences: one token of each).

        memory [`buffer_size`] int32 on the device is where a step's items are read; `plan_into` says what to put there.
        """
        launches, begin = [], 0
        for rows, most_tiles in self._most_tiles(max_sequences, max_tokens).items():
            tiling = self._tiling(rows)
            shape = self._tile_shape(tiling)
            num_items, num_merges = shape.most_items(most_tiles), shape.most_merges(most_tiles)
            work = memory[begin : begin + self._launch_size(tiling, most_tiles)]
            begin += len(work)
            num_programs = self._staying_programs(tiling, num_items)
            most = shape.tokens if max_tokens > max_sequences else 1
            scratch = self._scratch_for(shape.most_parts(most_tiles), tiling)
            launches.append(TileLaunch(work, num_items, num_merges, num_programs, most, most, tiling, scratch))
        return PlanBuffers(AttentionPlan(table, tuple(launches)), max_sequences, max_tokens, DecodeItems())

    def plan_into(self, buffers: PlanBuffers, layout: SequenceLayout, host: NDArray[np.int32]) -> None:
        """Write this step's items to host [`buffer_size`], which then goes to the buffers' memory.

        Where sequences have one token each, those that are padding get an output of 0 if `attention_kernel` serves them
        and there is room for more items: like all that is computed from it, it then takes little power.
        """
        assert len(layout.lens) <= buffers.max_sequences and int(layout.lens.sum()) <= buffers.max_tokens
        host[:] = 0
        for launch, members in zip(buffers.plan.launches, self._members_for(buffers, layout), strict=True):
            shape = self._tile_shape(launch.tiling)
            if buffers.max_tokens == buffers.max_sequences:
                items, merges = buffers.decodes.at(layout, shape)
                padding = padding_items(len(layout.lens), buffers.max_tokens)[: launch.num_items - len(items)]
                host[items.size : items.size + padding.size] = padding.ravel()
            else:
                items, merges = make_items(layout, members, shape)
            assert len(items) <= launch.num_items and len(merges) <= launch.num_merges
            host[: items.size] = items.ravel()
            first = launch.num_items * ITEM_SIZE
            host[first : first + merges.size] = merges.ravel()
            if launch.num_programs:
                first += launch.num_merges * MERGE_SIZE
                units = share_units(items, self._shape.num_kv_heads, launch.num_programs)
                host[first : first + units.size] = units.ravel()
            host = host[len(launch.work) :]

    def run(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: object, params: AttentionParams) -> Tensor:
        assert isinstance(plan, AttentionPlan)
        q = q.contiguous()
        out = torch.empty_like(q)
        for launch in plan.launches:
            self._launch(q, k_cache, v_cache, out, plan.table, launch, params)
        return out

    def _launch(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        out: Tensor,
        table: Tensor,
        launch: TileLaunch,
        params: AttentionParams,
    ) -> None:
        shape, tiling, scratch = self._shape, launch.tiling, launch.scratch
        assert k_cache.stride() == v_cache.stride() and k_cache.stride(1) == shape.head_dim
        if self._takes_hopper(launch, q, k_cache, params):
            self._launch_hopper(q, k_cache, v_cache, out, table, launch, params)
        else:
            self._launch_portable(q, k_cache, v_cache, out, table, launch, params)
        if launch.num_merges:
            num_units, parts = shape.num_q_heads * launch.num_merges * launch.most_merged, MOST_PARTS
            if launch.most_tokens == 1:
                parts = min(parts, max(4, next_power_of_2(launch.num_items // launch.num_merges)))
            merge_kernel[(min(num_units, MERGING_PROGRAMS * self._launcher.num_processors),)](
                out,
                scratch.values,
                scratch.weights,
                launch.merges,
                num_units,
                launch.most_merged,
                KV_HEADS=shape.num_kv_heads,
                GROUP=shape.group,
                HEAD_DIM=shape.head_dim,
                MERGE_SIZE=MERGE_SIZE,
                BLOCK_M=tiling.rows,
                BLOCK_D=self._block_d,
                BLOCK_PARTS=parts,
                num_warps=2 if parts == MOST_PARTS else 1,
                **self._launcher.options,
            )

    def _launch_portable(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        out: Tensor,
        table: Tensor,
        launch: TileLaunch,
        params: AttentionParams,
    ) -> None:
        shape, tiling, scratch = self._shape, launch.tiling, launch.scratch
        attention_kernel[(shape.num_kv_heads, launch.num_items)](
            q,
            k_cache,
            v_cache,
            table,
            launch.items,
            out,
            scratch.values,
            scratch.weights,
            out if params.alibi_slopes is None else params.alibi_slopes,
            table.stride(0),
            k_cache.stride(0),
            params.scale,
            params.soft_cap or 1.0,
            params.window or 0,
            KV_HEADS=shape.num_kv_heads,
            GROUP=shape.group,
            HEAD_DIM=shape.head_dim,
            ITEM_SIZE=ITEM_SIZE,
            BLOCK_M=tiling.rows,
            BLOCK_N=tiling.block_n,
            BLOCK_D=self._block_d,
            HAS_WINDOW=params.window is not None,
            HAS_CAP=params.soft_cap is not None,
            HAS_ALIBI=params.alibi_slopes is not None,
            SINGLE=launch.most_tokens == 1,
            WIDE=is_wide(k_cache),
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            **self._launcher.options,
        )

    def _launch_hopper(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        out: Tensor,
        table: Tensor,
        launch: TileLaunch,
        params: AttentionParams,
    ) -> None:
        from lightllm.kernels.triton.attention_hopper import BLOCK_KEYS, attention_hopper_kernel

        shape = self._shape
        attention_hopper_kernel[(launch.num_programs,)](
            q,
            k_cache,
            v_cache,
            table,
            launch.items,
            launch.units,
            out,
            launch.scratch.values,
            launch.scratch.weights,
            table.stride(0),
            k_cache.stride(0),
            params.scale * LOG2_E,
            laps_of(launch.num_items * shape.num_kv_heads, launch.num_programs),
            KV_HEADS=shape.num_kv_heads,
            GROUP=shape.group,
            HEAD_DIM=shape.head_dim,
            ITEM_SIZE=ITEM_SIZE,
            BLOCK_N=BLOCK_KEYS,
            num_warps=4,
            **self._launcher.options,
        )

    def _takes_hopper(self, launch: TileLaunch, q: Tensor, k_cache: Tensor, params: AttentionParams) -> bool:
        """Whether the kernel for Hopper's warp groups serves this launch."""
        plain = params.scale > 0 and params.window is None and params.soft_cap is None and params.alibi_slopes is None
        halves = q.dtype in (torch.bfloat16, torch.float16) and k_cache.dtype == q.dtype
        return launch.num_programs > 0 and plain and halves

    def _staying_programs(self, tiling: Tiling, num_items: int) -> int:
        """The programs that stay for all these items, if the kernel for Hopper may serve them; else 0."""
        if not self._launcher.hopper or tiling.rows != HOPPER_ROWS or self._shape.head_dim not in HOPPER_HEADS:
            return 0
        return min(num_items * self._shape.num_kv_heads, self._launcher.num_processors)

    def _launch_size(self, tiling: Tiling, most_tiles: int) -> int:
        """The int32s of a launch of at most so many tiles, in whole multiples of 16 bytes."""
        shape = self._tile_shape(tiling)
        num_items = shape.most_items(most_tiles)
        num_programs = self._staying_programs(tiling, num_items)
        num_units = laps_of(num_items * shape.num_kv_heads, num_programs) * num_programs if num_programs else 0
        return num_items * ITEM_SIZE + shape.most_merges(most_tiles) * MERGE_SIZE + -(-num_units // 4) * 4

    def _scratch_for(self, num_parts: int, tiling: Tiling) -> Scratch:
        """Scratch for so many parts. All launches share the largest made so far, since they run one after another;
        a plan keeps what it was given, so a captured graph never points to memory that was freed."""
        num_rows = num_parts * self._shape.num_kv_heads * tiling.rows
        if self._scratch is None or len(self._scratch.weights) < num_rows:
            values = torch.empty(num_rows, self._shape.head_dim, dtype=torch.float32, device=self._device)
            self._scratch = Scratch(values, torch.empty(num_rows, dtype=torch.float32, device=self._device))
        return self._scratch

    def _tiling(self, rows: int) -> Tiling:
        return self._choose_tiling(rows, self._shape.head_dim, self._launcher.shared_bytes)

    def _tile_shape(self, tiling: Tiling) -> TileShape:
        slots = tiling.occupancy * self._launcher.num_processors
        cached_keys = CACHE_BYTES // (4 * self._shape.num_kv_heads * self._shape.head_dim)
        return TileShape(tiling.rows, self._shape.group, self._shape.num_kv_heads, slots, cached_keys)

    def _large_rows(self, most_tokens: int) -> int:
        """Rows of the large tiles when the longest chunk has this many tokens."""
        low, high = LARGE_ROWS
        return max(low if most_tokens * self._shape.group <= low else high, self._small_rows)

    def _most_tiles(self, max_sequences: int, max_tokens: int) -> dict[int, int]:
        """Rows of a tile -> the most such tiles, for each launch of such buffers."""
        small, large = self._small_rows, self._large_rows(max_tokens)
        if max_tokens == max_sequences or large == small:
            return {small: max_tokens}
        return {small: max_sequences, large: max_sequences + max_tokens // max(1, large // self._shape.group)}

    def _by_rows(self, layout: SequenceLayout) -> list[tuple[int, NDArray[np.int64]]]:
        """Tile rows, and the indices of the sequences computed in tiles of that size."""
        small = layout.lens * self._shape.group <= self._small_rows
        groups = [(self._small_rows, np.flatnonzero(small & (layout.lens > 0)))]
        if not small.all():  # any tile serves any chunk; the large ones are faster for long chunks
            groups.append((self._large_rows(int(layout.lens.max())), np.flatnonzero(~small)))
        return [(rows, members) for rows, members in groups if len(members)]

    def _members_for(self, buffers: PlanBuffers, layout: SequenceLayout) -> list[NDArray[np.int64]]:
        """The sequences of each launch of the buffers."""
        small = layout.lens * self._shape.group <= self._small_rows
        if len(buffers.plan.launches) == 1:
            return [np.flatnonzero(layout.lens > 0)]
        return [np.flatnonzero(small & (layout.lens > 0)), np.flatnonzero(~small)]
