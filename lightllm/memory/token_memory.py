"""Token memory: the free stack and the prefix tree behind one door, with a ledger that must always add up.

    free + held + cached == total        held: private to a request; cached: owned by the prefix tree

`available` is what could be handed out now: free slots and cached ones that nobody uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightllm.memory.allocator import SlotAllocator
from lightllm.memory.radix_tree import Eviction, Insertion, Match, Node, Peek, RadixTree

Tokens = NDArray[np.int32]
Slots = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ledger:
    """A reading of the token memory, in slots."""

    total: int
    free: int
    held: int
    cached: int
    locked: int

    @property
    def evictable(self) -> int:
        return self.cached - self.locked

    @property
    def in_use(self) -> int:
        return self.held + self.locked

    @property
    def balanced(self) -> bool:
        return self.free + self.held + self.cached == self.total


class TokenMemory:
    """Slots for `total` tokens, with prefix reuse unless `prefix_cache` is off (then nothing is ever cached)."""

    def __init__(self, total: int, *, prefix_cache: bool = True, eviction: Eviction = "lru") -> None:
        self._allocator = SlotAllocator(total)
        self._tree = RadixTree(eviction)
        self._prefix_cache = prefix_cache
        self._num_held = 0
        self.num_evicted = 0

    @property
    def total(self) -> int:
        return self._allocator.total

    @property
    def spare_slot(self) -> int:
        return self._allocator.spare_slot

    @property
    def available(self) -> int:
        return self._allocator.num_free + self._tree.num_evictable

    @property
    def num_locked(self) -> int:
        return self._tree.num_locked

    @property
    def num_exclusive(self) -> int:
        """Cached slots that exactly one request uses."""
        return self._tree.num_exclusive

    def ledger(self) -> Ledger:
        tree = self._tree
        return Ledger(self.total, self._allocator.num_free, self._num_held, tree.num_cached, tree.num_locked)

    def allocate(self, count: int) -> Slots:
        """Take `count` slots, evicting cached prefixes if it must. The caller has checked `available`."""
        assert count <= self.available, f"asked for {count} slots, {self.available} are available"
        missing = count - self._allocator.num_free
        if missing > 0:
            evicted = self._tree.evict(missing)
            self.num_evicted += len(evicted)
            self._allocator.free(evicted)
        self._num_held += count
        return self._allocator.allocate(count)

    def free(self, slots: Slots) -> None:
        """Give back slots that a request held."""
        assert len(slots) <= self._num_held
        self._num_held -= len(slots)
        self._allocator.free(slots)

    def peek(self, tokens: Tokens, salt: str = "") -> Peek:
        """How much of a prefix is cached; changes nothing."""
        return self._tree.peek(tokens if self._prefix_cache else tokens[:0], salt)

    def match(self, tokens: Tokens, salt: str = "") -> Match:
        """The longest cached prefix; empty when the prefix cache is off."""
        return self._tree.match(tokens if self._prefix_cache else tokens[:0], salt)

    def share(self, tokens: Tokens, slots: Slots, salt: str = "") -> Insertion:
        """Give a sequence's slots to the prefix tree, except those of tokens it already has."""
        if not self._prefix_cache:
            tokens, slots = tokens[:0], slots[:0]
        insertion = self._tree.insert(tokens, slots, salt)
        self._num_held -= len(tokens) - len(insertion.already)
        return insertion

    def stamp(self, step: int) -> None:
        """Whatever is shared from now on is computed by `step`."""
        self._tree.stamp = step

    def lock(self, node: Node, holder: int = 0, priority: int = 0, held: Node | None = None) -> None:
        """Keep a prefix from eviction on behalf of `holder`, a small number of the caller's; see `RadixTree.lock`."""
        self._tree.lock(node, holder, priority, held)

    def unlock(self, node: Node, holder: int = 0) -> None:
        self._tree.unlock(node, holder)

    def exclusive(self, holders: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cached slots that each of `holders` alone keeps from eviction."""
        known = self._tree.exclusive
        if len(holders) and int(holders.max()) >= len(known):
            return np.where(holders < len(known), known[np.minimum(holders, len(known) - 1)], 0)
        return known[holders]

    def newest_birth(self, node: Node) -> int:
        """The last step that computed any of the path to `node`."""
        return self._tree.newest_birth(node)

    def discard(self, node: Node, since: int) -> None:
        """Drop what step `since` or a later one put at the end of a prefix, as far as nobody uses it."""
        slots = self._tree.discard(node, since)
        self.num_evicted += len(slots)
        self._allocator.free(slots)

    def forget(self) -> None:
        """Drop every cached prefix that nobody uses."""
        evicted = self._tree.clear()
        self.num_evicted += len(evicted)
        self._allocator.free(evicted)

    def check(self) -> None:
        """Assert that every slot is accounted for exactly once (full scan: for tests and when idle)."""
        ledger = self.ledger()
        assert ledger.balanced, f"slots do not add up: {ledger}"
        cached = [node.slots for node in self._tree.nodes()]
        known = np.concatenate([self._allocator.free_slots(), *cached])
        assert len(np.unique(known)) == len(known), "a slot is both free and cached, or cached twice"
        assert len(known) == ledger.free + ledger.cached, f"the tree holds {len(known) - ledger.free} slots: {ledger}"
        locked = sum(len(node.tokens) for node in self._tree.nodes() if node.ref_count)
        assert locked == ledger.locked, f"{locked} slots are referenced: {ledger}"
        single = sum(len(node.tokens) for node in self._tree.nodes() if node.ref_count == 1)
        assert single == self._tree.num_exclusive == int(self._tree.exclusive.sum()), (
            f"{single} slots have a single holder: {ledger}"
        )
