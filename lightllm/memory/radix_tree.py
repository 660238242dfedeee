"""The prefix tree: token sequences whose KV is in the pool, shared by whoever begins with them.

A node holds a run of tokens and their slots; children differ in their first token. A request locks the node its
prefix ends in, which counts a reference on the whole path to the root, so nothing in use is evicted. Unreferenced
leaves are evicted in the order of `eviction`, and only as much of a leaf's tail as is needed:

    lru        least recently used first
    lfu        least often used first, ties by last use
    priority   lowest priority first (the highest of the requests that used it), ties by last use

                    (root)
              [1 2 3 4 5] ref 2
              /             \\
       [6 7] ref 1      [9 9 9] ref 0   <- evictable

The idea of a radix tree over cached prefixes is RadixAttention's (SGLang, arXiv 2312.07104, section 3). Here a
prefix enters as soon as its computation is planned, so a burst of equal prompts shares while it runs.
It knows tokens and slot numbers, neither tensors nor requests. Separate salts have separate trees.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Slots = NDArray[np.int32]
Eviction = Literal["lru", "lfu", "priority"]
Rank = tuple[int, int]

_EMPTY = np.empty(0, np.int32)


class Node:
    """A run of tokens below `parent`; `tokens` and `slots` have equal length (zero only at a root).

    `birth` is the tree's stamp when its tokens were inserted; `num_uses` counts those who held it, each once;
    `priority` is the highest seen.
    `holders` is the sum of the holders' numbers: with one reference left, it names the last holder.
    """

    __slots__ = (
        "birth",
        "children",
        "holders",
        "last_used",
        "num_uses",
        "parent",
        "priority",
        "ref_count",
        "salt",
        "serial",
        "slots",
        "tokens",
    )

    def __init__(self, parent: Node | None, tokens: Tokens, slots: Slots, serial: int, salt: str = "") -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.children: dict[int, Node] = {}
        self.ref_count = 0
        self.last_used = 0
        self.num_uses = 0
        self.holders = 0
        self.priority = 0
        self.birth = 0
        self.serial = serial
        self.salt = salt

    @property
    def is_root(self) -> bool:
        return self.parent is None


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known prefix: its slots [M] and the node it ends in (exactly at that node's end)."""

    slots: Slots
    node: Node

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class Peek:
    """A look that changes nothing: tokens known, and how many of them no request holds."""

    matched_len: int
    unreferenced_len: int


@dataclass(frozen=True, slots=True)
class Insertion:
    """What an insert did: the node the sequence now ends in, and the slots [A] of the tokens that were there before."""

    node: Node
    already: Slots


class RadixTree:
    """Prefix tree with reference counts. Time is a counter of its own; `stamp` marks what is inserted from now on."""

    def __init__(self, eviction: Eviction = "lru") -> None:
        self._eviction = eviction
        self.stamp = 0
        self._serials = count()
        self._clock = count(1)
        self._roots: dict[str, Node] = {}
        self._heap: list[tuple[Rank, int, Node]] = []
        self._num_cached = 0
        self._num_evictable = 0
        self.exclusive: NDArray[np.int64] = np.zeros(64, np.int64)
        """Slots that each holder alone keeps from eviction, [holders]."""
        self.num_exclusive = 0

    @property
    def num_cached(self) -> int:
        """Slots owned by the tree, in use or not."""
        return self._num_cached

    @property
    def num_evictable(self) -> int:
        """Slots owned by the tree that no request holds."""
        return self._num_evictable

    @property
    def num_locked(self) -> int:
        return self._num_cached - self._num_evictable

    def peek(self, tokens: Tokens, salt: str = "") -> Peek:
        """What `match` would find, without touching or splitting anything."""
        node = self._roots.get(salt)
        position = unreferenced = 0
        while node is not None and position < len(tokens):
            child = node.children.get(int(tokens[position]))
            if child is None:
                break
            same = _common(child.tokens, tokens[position:])
            position += same
            if child.ref_count == 0:
                unreferenced += same
            node = child if same == len(child.tokens) else None
        return Peek(position, unreferenced)

    def match(self, tokens: Tokens, salt: str = "") -> Match:
        """The longest prefix of `tokens` in the tree. Splits a node when the match ends inside it."""
        node = self._roots.get(salt) or self._new_root(salt)
        pieces: list[Slots] = []
        position = 0
        while position < len(tokens):
            child = node.children.get(int(tokens[position]))
            if child is None:
                break
            same = _common(child.tokens, tokens[position:])
            if same < len(child.tokens):
                child = self._split(child, same)
            self._touch(child)
            pieces.append(child.slots)
            position += same
            node = child
        slots = np.concatenate(pieces) if pieces else _EMPTY
        return Match(slots, node)

    def insert(self, tokens: Tokens, slots: Slots, salt: str = "") -> Insertion:
        """Make `tokens` known; the tree takes over the slots past those already there, the caller keeps the others."""
        assert len(tokens) == len(slots), f"{len(tokens)} tokens but {len(slots)} slots"
        match = self.match(tokens, salt)
        node, already = match.node, len(match)
        if already < len(tokens):
            if node.is_root:
                self._roots[salt] = node
            child = Node(node, tokens[already:].copy(), slots[already:].copy(), next(self._serials), salt)
            node.children[int(tokens[already])] = child
            self._num_cached += len(child.tokens)
            self._num_evictable += len(child.tokens)
            child.birth = self.stamp
            self._touch(child)
            node = child
        return Insertion(node, match.slots)

    def lock(self, node: Node, holder: int = 0, priority: int = 0, held: Node | None = None) -> None:
        """Count one reference of `holder` (a small number) on the path from `node` to its root.

        `held` is a node of that path whose lock it is to give back for this one: from there up it is no further use.
        """
        if holder >= len(self.exclusive):
            grown = np.zeros(2 * holder, np.int64)
            grown[: len(self.exclusive)] = self.exclusive
            self.exclusive = grown
        at: Node | None = node
        is_new = True
        while at is not None and not at.is_root:
            is_new = is_new and at is not held
            if at.ref_count == 0:
                self._num_evictable -= len(at.tokens)
                self._hold_alone(holder, len(at.tokens))
            elif at.ref_count == 1:
                self._hold_alone(at.holders, -len(at.tokens))
            at.ref_count += 1
            at.holders += holder
            at.num_uses += is_new
            at.priority = max(at.priority, priority)
            at = at.parent

    def unlock(self, node: Node, holder: int = 0) -> None:
        """Take that reference back."""
        at: Node | None = node
        while at is not None and not at.is_root:
            assert at.ref_count > 0, "unlocking a node that nobody holds"
            at.ref_count -= 1
            at.holders -= holder
            if at.ref_count == 0:
                self._num_evictable += len(at.tokens)
                self._hold_alone(holder, -len(at.tokens))
                self._touch(at)
            elif at.ref_count == 1:
                self._hold_alone(at.holders, len(at.tokens))
            at = at.parent

    def _hold_alone(self, holder: int, count: int) -> None:
        self.exclusive[holder] += count
        self.num_exclusive += count

    def newest_birth(self, node: Node) -> int:
        """The latest stamp on the path to the root (0 at a root)."""
        newest = 0
        at: Node | None = node
        while at is not None and not at.is_root:
            newest = max(newest, at.birth)
            at = at.parent
        return newest

    def discard(self, node: Node, since: int) -> Slots:
        """Forget the path's lower end as far as it was born at stamp `since` or later and nobody uses it."""
        freed: list[Slots] = []
        at: Node | None = node
        while at is not None and not at.is_root and at.birth >= since and at.ref_count == 0 and not at.children:
            parent = at.parent
            freed.append(at.slots)
            self._num_cached -= len(at.tokens)
            self._num_evictable -= len(at.tokens)
            self._shorten(at, len(at.tokens))
            at = parent
        return np.concatenate(freed) if freed else _EMPTY

    def evict(self, wanted: int) -> Slots:
        """Forget up to `wanted` evictable slots, worst ranked leaves first, tails only; returns them."""
        freed: list[Slots] = []
        while wanted > 0 and self._heap:
            rank, _, leaf = heapq.heappop(self._heap)
            if not self._is_current(leaf, rank):
                continue
            taken = min(wanted, len(leaf.tokens))
            freed.append(leaf.slots[len(leaf.slots) - taken :])
            wanted -= taken
            self._num_cached -= taken
            self._num_evictable -= taken
            self._shorten(leaf, taken)
        return np.concatenate(freed) if freed else _EMPTY

    def clear(self) -> Slots:
        """Forget everything evictable."""
        return self.evict(self._num_evictable)

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots, for checks and displays."""
        pending = [child for root in self._roots.values() for child in root.children.values()]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def _new_root(self, salt: str) -> Node:
        """A root that joins the tree with its first child, so that salts without KV leave nothing behind."""
        return Node(None, _EMPTY, _EMPTY, next(self._serials), salt)

    def _rank(self, node: Node) -> Rank:
        """What is evicted first has the smallest rank."""
        if self._eviction == "lfu":
            return node.num_uses, node.last_used
        if self._eviction == "priority":
            return node.priority, node.last_used
        return 0, node.last_used

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node` after `at` tokens; returns the new upper half, which keeps the references."""
        parent = node.parent
        assert parent is not None and 0 < at < len(node.tokens)
        upper = Node(parent, node.tokens[:at], node.slots[:at], next(self._serials), node.salt)
        upper.ref_count = node.ref_count
        upper.last_used = node.last_used
        upper.holders = node.holders
        upper.num_uses = node.num_uses
        upper.priority = node.priority
        upper.birth = node.birth
        upper.children[int(node.tokens[at])] = node
        parent.children[int(upper.tokens[0])] = upper
        node.parent = upper
        node.tokens = node.tokens[at:]
        node.slots = node.slots[at:]
        return upper

    def _touch(self, node: Node) -> None:
        node.last_used = next(self._clock)
        self._offer(node)

    def _offer(self, node: Node) -> None:
        if node.ref_count == 0 and not node.children and not node.is_root:
            heapq.heappush(self._heap, (self._rank(node), node.serial, node))
            if len(self._heap) > 64 + 4 * max(16, self._num_evictable):
                self._rebuild_heap()

    def _rebuild_heap(self) -> None:
        live = [n for n in self.nodes() if n.ref_count == 0 and not n.children]
        self._heap = [(self._rank(n), n.serial, n) for n in live]
        heapq.heapify(self._heap)

    def _is_current(self, leaf: Node, rank: Rank) -> bool:
        attached = leaf.parent is not None and len(leaf.tokens) > 0
        return attached and leaf.ref_count == 0 and not leaf.children and self._rank(leaf) == rank

    def _shorten(self, leaf: Node, taken: int) -> None:
        """Drop the last `taken` tokens of a leaf; an empty leaf leaves the tree and may expose its parent."""
        parent = leaf.parent
        assert parent is not None
        kept = len(leaf.tokens) - taken
        if kept:
            leaf.tokens = leaf.tokens[:kept]
            leaf.slots = leaf.slots[:kept]
            self._offer(leaf)
            return
        del parent.children[int(leaf.tokens[0])]
        leaf.parent = None
        leaf.tokens = leaf.slots = _EMPTY
        if parent.is_root and not parent.children:
            del self._roots[parent.salt]
        else:
            self._offer(parent)


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the common prefix of two token arrays."""
    length = min(len(a), len(b))
    if length == 0 or a[0] != b[0]:
        return 0
    different = a[:length] != b[:length]
    first = int(different.argmax())
    return first if different[first] else length
