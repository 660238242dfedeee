"""Which program computes which part of a step's attention. Host work in numpy, once per step; no torch, no Triton.

A sequence's new tokens are cut into tiles of at most `rows / group` tokens (the query heads that share a key/value
head are packed into a tile's rows), and each tile's keys into parts, so that the programs of one launch are many
enough to fill the device and few enough that merging costs little:

    keys    0 ............................ 4096
    tile    [ part 0 ][ part 1 ][ part 2 ]        each part one item: one program per key/value head
    merge   [        one output          ]        one program per query head

An item is a row of `ITEM_SIZE` int32, a merge a row of `MERGE_SIZE`; their fields are the constants below. Where there
are fewer programs than items, each staying for many, `share_units` says which take what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightllm.kernels.ops.contracts import SequenceLayout

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

ITEM_SIZE = 8
TOKEN, POSITION, COUNT, ROW, KEY_START, KEY_END, PART, NUM_PARTS = range(8)
MERGE_SIZE = 4
MERGE_TOKEN, MERGE_COUNT, MERGE_FIRST_PART, MERGE_NUM_PARTS = range(4)

START_COST = 128
"""What starting a program costs, in keys it could have read meanwhile."""
MERGE_COST_PER_HEAD = 8
"""What merging parts costs, likewise, for each query head, and for each part besides. Measured within steps of one
sequence: with 32 heads two hundred and fifty keys are better read in one part, with 16 in four."""
MERGE_COST_PER_PART = 1
KEPT_STEPS = 16
_PART_SIZES = np.array(
    [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384, 1 << 20, 1 << 30], np.int64
)


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows of a tile, query heads per key/value head, key/value heads, programs the device runs at once, and keys of
    all heads that its L2 cache holds."""

    rows: int
    group: int
    num_kv_heads: int
    slots: int
    cached_keys: int

    @property
    def tokens(self) -> int:
        """Tokens of one tile."""
        return max(1, self.rows // self.group)

    def most_items(self, num_tiles: int) -> int:
        """The most items a step with this many tiles is cut into: enough to fill the device once, or a quarter more
        than the tiles. A captured launch has this many, so few of them may be idle: idle programs wait for room, too,
        and hold up the kernel that could start early."""
        return max(num_tiles + num_tiles // 4, self.slots // self.num_kv_heads)

    def most_merges(self, most_tiles: int) -> int:
        """The most tiles with several parts, of a step with at most this many tiles."""
        return max(min(most_tiles, self.slots // self.num_kv_heads // 2), most_tiles // 4)

    def most_parts(self, most_tiles: int) -> int:
        """The most parts of all those tiles together: each has two or more and counts as one tile, so that they are at
        most twice as many as the items beyond the tiles."""
        return max(most_tiles // 4 * 2, self.slots // self.num_kv_heads)


def make_items(layout: SequenceLayout, members: Int64, shape: TileShape) -> tuple[Int32, Int32]:
    """The items [I, ITEM_SIZE] of the sequences `members`, and the merges [J, MERGE_SIZE].

    As many sequences as the cache holds keys of come one after another, the longest first, and of them the longest
    items first: then the programs end at about the same time, and most keys are read from memory once.
    """
    if len(members) == 0:
        return np.empty((0, ITEM_SIZE), np.int32), np.empty((0, MERGE_SIZE), np.int32)
    first_tokens = np.cumsum(layout.lens, dtype=np.int64) - layout.lens
    sequence, offset = _repeat(members, -(-layout.lens[members].astype(np.int64) // shape.tokens))
    offset = offset * shape.tokens
    count = np.minimum(shape.tokens, layout.lens[sequence] - offset)
    position = layout.starts[sequence].astype(np.int64) + offset
    num_keys = position + count
    part_size = choose_part_size(num_keys, shape)
    parts = -(-num_keys // part_size)
    size = np.minimum(-(-num_keys // parts // 64) * 64, part_size)  # equal parts, in whole blocks
    size = np.where(parts > 1, size, num_keys)
    parts = -(-num_keys // size)
    first_part = np.cumsum(np.where(parts > 1, parts, 0)) - parts  # meaningless, and unused, where there is one part
    tile, part = _repeat(np.arange(len(sequence)), parts)
    token = first_tokens[sequence] + offset
    items = np.empty((len(tile), ITEM_SIZE), np.int32)
    items[:, TOKEN] = token[tile]
    items[:, POSITION] = position[tile]
    items[:, COUNT] = count[tile]
    items[:, ROW] = layout.rows[sequence][tile]
    items[:, KEY_START] = part * size[tile]
    items[:, KEY_END] = np.minimum((part + 1) * size[tile], num_keys[tile])
    items[:, PART] = first_part[tile] + part
    items[:, NUM_PARTS] = parts[tile]
    order = np.lexsort((items[:, KEY_START] - items[:, KEY_END], _cache_loads(layout, members, shape)[sequence][tile]))
    merges = np.stack([token, count, first_part, parts], axis=1)[parts > 1]
    return items[order], merges.astype(np.int32)


class DecodeItems:
    """The items of steps in which each sequence has one token. The next step of the same sequences has those of the
    last, with one more key in each sequence's last part; for balance they are made anew every `KEPT_STEPS` steps."""

    def __init__(self) -> None:
        self._rows: Int32 = np.empty(0, np.int32)
        self._starts: Int32 = np.empty(0, np.int32)
        self._kept = 0
        self._last: Int64 = np.empty(0, np.int64)
        self._items: Int32 = np.empty((0, ITEM_SIZE), np.int32)
        self._merges: Int32 = np.empty((0, MERGE_SIZE), np.int32)

    def at(self, layout: SequenceLayout, shape: TileShape) -> tuple[Int32, Int32]:
        """As `make_items`, for sequences of one token each. The arrays are valid until the next call."""
        rows, starts = layout.rows, layout.starts
        if self._kept and np.array_equal(rows, self._rows) and np.array_equal(starts, self._starts + 1):
            self._kept -= 1
            self._items[:, POSITION] += 1
            self._items[self._last, KEY_END] += 1
        else:
            self._kept = KEPT_STEPS - 1
            self._items, self._merges = make_items(layout, np.arange(len(rows)), shape)
            self._last = np.flatnonzero(self._items[:, KEY_END] == self._items[:, POSITION] + 1)
        self._rows, self._starts = rows, starts
        return self._items, self._merges


def padding_items(begin: int, end: int) -> Int32:
    """Items [end - begin, ITEM_SIZE] of tokens that are nobody's: they see no key, so that `attention_kernel`, and no
    other, gives 0."""
    items = np.zeros((end - begin, ITEM_SIZE), np.int32)
    items[:, TOKEN] = np.arange(begin, end)
    items[:, COUNT] = items[:, NUM_PARTS] = 1
    return items


def laps_of(num_units: int, num_programs: int) -> int:
    """Turns in which so many programs take all units."""
    return -(-num_units // num_programs)


def share_units(items: Int32, num_kv_heads: int, num_programs: int) -> Int32:
    """Which units each of the programs that stay computes: [laps, num_programs], counted from 1, 0 where a program is
    done. Unit i is item i // num_kv_heads with key/value head i % num_kv_heads.

    The units of a lap are those that follow each other, so that they share the cache; the longest of them goes to the
    program that has had the least work. Every item has a key: without one, a program would wait for it for ever.
    """
    assert (items[:, KEY_END] > items[:, KEY_START]).all()
    work = np.repeat(items[:, KEY_END] - items[:, KEY_START] + START_COST, num_kv_heads)
    shared = np.zeros((laps_of(len(work), num_programs), num_programs), np.int32)
    done = np.zeros(num_programs, np.int64)
    for lap, units in enumerate(shared):
        first = lap * num_programs
        longest = first + np.argsort(-work[first : first + num_programs], kind="stable")
        programs = np.argsort(done, kind="stable")[: len(longest)]
        units[programs] = longest + 1
        done[programs] += work[longest]
    return shared


def choose_part_size(num_keys: Int64, shape: TileShape) -> int:
    """The part size of least estimated time: waves of programs times a part's keys, plus starting and merging."""
    sizes = _PART_SIZES
    parts = -(-num_keys[None, :] // sizes[:, None])  # [sizes, tiles]
    items = parts.sum(1)
    longest = np.minimum(sizes, int(num_keys.max()))
    waves = items * shape.num_kv_heads / shape.slots
    few = np.ceil(waves) * (longest + START_COST)  # every wave lasts as long as its longest part
    many = num_keys.sum() * shape.num_kv_heads / shape.slots + START_COST * waves + longest / 2  # waves blur
    most_parts = parts.max(1)
    merge_cost = MERGE_COST_PER_HEAD * shape.group * shape.num_kv_heads
    merge = np.where(most_parts > 1, merge_cost + MERGE_COST_PER_PART * most_parts, 0)
    cost = np.where(waves > 2, many, few) + merge
    cost = np.where(items <= shape.most_items(len(num_keys)), cost, np.inf)
    return int(sizes[int(np.argmin(cost))])


def _cache_loads(layout: SequenceLayout, members: Int64, shape: TileShape) -> Int64:
    """Which filling of the cache each of the step's sequences [S] belongs to."""
    num_keys = layout.kv_lens[members].astype(np.int64)
    order = np.argsort(-num_keys, kind="stable")
    loads = np.zeros(len(layout.rows), np.int64)
    loads[members[order]] = (np.cumsum(num_keys[order]) - num_keys[order]) // shape.cached_keys
    return loads


def _repeat(values: Int64, counts: Int64) -> tuple[Int64, Int64]:
    """Each value repeated `counts` times, and the index of each repetition."""
    repeated = np.repeat(values, counts)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    return repeated, np.arange(len(repeated)) - firsts
