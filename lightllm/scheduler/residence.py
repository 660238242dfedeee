"""Where running requests live: their rows of the slot table, their slots, their place in the prefix tree.

It does what the scheduler decided and records what the engine must be told with the next plan (opened rows, table
patches). A chunk enters the prefix tree as soon as it is planned, since on the device every later read comes after
it: a burst of equal prompts computes the shared part once.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from lightllm.memory.radix_tree import Node
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.plan import OpenedRow, TablePatch
from lightllm.scheduler.lengths import Int64, Lengths
from lightllm.scheduler.request import Request

Slots = NDArray[np.int32]


class Residence:
    """Rows and slots of the running requests, at most `num_rows` of up to `max_len` tokens each.

    `shareable_len` bounds the prompts whose KV depends on the tokens alone; longer ones stay out of the tree.
    """

    def __init__(
        self,
        memory: TokenMemory,
        lengths: Lengths,
        *,
        num_rows: int,
        max_len: int,
        shareable_len: int,
        prefix_cache: bool,
        eos_ids: tuple[int, ...],
    ) -> None:
        self._memory = memory
        self._lengths = lengths
        self._shareable_len = shareable_len
        self._prefix_cache = prefix_cache
        self._eos_ids = eos_ids
        self._table = _sparse_table(num_rows, max_len)
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._opened: list[OpenedRow] = []
        self._patches: list[TablePatch] = []
        self._later_patches: list[TablePatch] = []
        self._duplicates: list[Slots] = []

    @property
    def has_free_row(self) -> bool:
        return bool(self._free_rows)

    def can_share(self, prompt_len: int) -> bool:
        """Whether a prompt of that length may use and feed the prefix tree."""
        return self._prefix_cache and prompt_len <= self._shareable_len

    def matchable(self, request: Request) -> Slots:
        """The tokens that may come from the prefix tree: never the last known one, whose output is wanted."""
        if not request.shares_prefix:
            return request.buffer[:0]
        return request.tokens[: min(request.known_len - 1, self._shareable_len)]

    def open(self, request: Request) -> None:
        """Give a waiting request a row and whatever prefix is cached."""
        row = request.row = self._free_rows.pop()
        submit = request.submit
        tokens = request.tokens.copy()
        opened = OpenedRow(row, tokens, request.prompt_len, submit.params, submit.seed, self._eos_ids, submit.bad_words)
        self._opened.append(opened)
        self.extend(request)

    def extend(self, request: Request) -> None:
        """Take over what the tree knows beyond what this request has computed: others may have been faster."""
        tokens = self.matchable(request)
        computed = request.computed_len
        if len(tokens) <= computed:
            return
        match = self._memory.match(tokens, request.submit.cache_salt)
        if len(match) <= computed:
            return
        assert request.matched_len == computed, "a prompt in progress gives all it has to the tree"
        self._hold(request, match.node)
        self._patches.append(self._write(request.row, computed, match.slots[computed:]))
        request.matched_len = request.computed_len = len(match)

    def compute_prompt(self, request: Request, count: int) -> Slots:
        """Slots for the next `count` tokens of a prompt, which thereby become known to the prefix tree."""
        start = request.computed_len
        slots = self._memory.allocate(count)
        self._table[request.row, start : start + count] = slots
        request.computed_len = start + count
        self._share(request)
        return slots

    def compute_decodes(self, indices: Int64) -> Slots:
        """One slot for the next token of each request in `indices` [R]."""
        lengths = self._lengths
        slots = self._memory.allocate(len(indices))
        computed = lengths.computed[indices]
        self._table[lengths.row[indices], computed] = slots
        lengths.computed[indices] = computed + 1
        return slots

    def release(self, request: Request, *, trusted: bool) -> None:
        """Give back row, slots and tree reference. Later plans may reuse the slots: the device runs in order."""
        if trusted:
            self._share(request)
        row = request.row
        self._memory.free(self._table[row, request.matched_len : request.computed_len].copy())
        if request.node is not None:
            self._memory.unlock(request.node, request.index)
            if not trusted:
                self._memory.discard(request.node, request.opened_step)
        self._forget_row(row)
        self._free_rows.append(row)
        request.rewind()

    def take_changes(self) -> tuple[tuple[OpenedRow, ...], tuple[TablePatch, ...]]:
        """What the plan at hand must tell the engine."""
        opened, self._opened = tuple(self._opened), []
        patches, self._patches = tuple(self._patches), self._later_patches
        self._later_patches = []
        return opened, patches

    def free_duplicates(self) -> None:
        """Free slots whose content the tree has elsewhere; not before the plan that writes to them is complete."""
        for slots in self._duplicates:
            self._memory.free(slots)
        self._duplicates.clear()

    def _share(self, request: Request) -> None:
        """Give the computed prefix to the tree; slots of tokens it already had become duplicates and are replaced."""
        if not request.shares_prefix:
            return
        matched = request.matched_len
        length = min(request.computed_len, request.valued_len, self._shareable_len)
        if length <= matched:
            return
        row = self._table[request.row, :length]
        insertion = self._memory.share(request.buffer[:length], row, request.submit.cache_salt)
        already = len(insertion.already)
        if already > matched:
            self._duplicates.append(row[matched:already].copy())
            self._later_patches.append(self._write(request.row, matched, insertion.already[matched:]))
        self._hold(request, insertion.node)
        request.matched_len = length

    def _hold(self, request: Request, node: Node) -> None:
        """Move the request's reference to `node`."""
        self._memory.lock(node, request.index, request.submit.priority, request.node)
        if request.node is not None:
            self._memory.unlock(request.node, request.index)
        request.node = node

    def _write(self, row: int, start: int, slots: Slots) -> TablePatch:
        self._table[row, start : start + len(slots)] = slots
        return TablePatch(row, start, slots.copy())

    def _forget_row(self, row: int) -> None:
        """Drop what the next plan would have said about a row that is gone."""
        self._patches = [p for p in self._patches if p.row != row]
        self._later_patches = [p for p in self._later_patches if p.row != row]
        self._opened = [o for o in self._opened if o.row != row]

    def check(self, running: list[Request]) -> None:
        """Assert that every private slot belongs to exactly one running request."""
        private = [self._table[r.row, r.matched_len : r.computed_len] for r in running]
        held = np.concatenate([*private, np.empty(0, np.int32)])
        assert len(held) == len(np.unique(held)) == self._memory.ledger().held, "private slots do not add up"


def _sparse_table(num_rows: int, num_columns: int) -> Slots:
    """Zeros of which the host gives what is written, a small page at a time. For arrays of numpy it is asked for huge
    pages, and a step waits half a millisecond while it clears one for a row that nobody used before."""
    memory = mmap.mmap(-1, num_rows * num_columns * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not on every system, nor in every kernel
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.int32).reshape(num_rows, num_columns)
