"""The prefix tree against a plain dictionary of prefixes, and its order of eviction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.memory.radix_tree import Eviction, Node, RadixTree


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def insert(tree: RadixTree, *tokens: int, salt: str = "", first_slot: int = 0) -> Node:
    slots = np.arange(first_slot, first_slot + len(tokens), dtype=np.int32)
    return tree.insert(ids(*tokens), slots, salt).node


def test_a_match_ends_where_sequences_part() -> None:
    tree = RadixTree()
    insert(tree, 1, 2, 3, 4, first_slot=10)
    assert tree.match(ids(1, 2, 9)).slots.tolist() == [10, 11]
    assert tree.match(ids(1, 2, 3, 4, 5)).slots.tolist() == [10, 11, 12, 13]
    assert tree.match(ids(2)).slots.tolist() == []


def test_an_insert_names_what_was_there() -> None:
    tree = RadixTree()
    insert(tree, 1, 2, 3, first_slot=10)
    insertion = tree.insert(ids(1, 2, 7, 8), ids(20, 21, 22, 23))
    assert insertion.already.tolist() == [10, 11]
    assert tree.match(ids(1, 2, 7, 8)).slots.tolist() == [10, 11, 22, 23]
    assert tree.num_cached == 5


def test_a_look_changes_nothing() -> None:
    tree = RadixTree()
    held = insert(tree, 1, 2, 3, 4)
    insert(tree, 1, 2, 7, 7, first_slot=10)
    tree.lock(held)
    peek = tree.peek(ids(1, 2, 7, 9))
    assert (peek.matched_len, peek.unreferenced_len) == (3, 1)
    assert tree.peek(ids(1, 2, 3)) == tree.peek(ids(1, 2, 3, 9))
    assert len(list(tree.nodes())) == 3


def test_salts_are_apart_and_leave_nothing_behind() -> None:
    tree = RadixTree()
    insert(tree, 1, 2, salt="a")
    assert len(tree.match(ids(1, 2), "b")) == 0 and len(tree.match(ids(1, 2))) == 0
    assert len(tree.match(ids(1, 2), "a")) == 2
    assert sorted(tree.clear().tolist()) == [0, 1]
    assert not tree._roots


def test_the_tail_of_a_leaf_goes_first_and_no_more_than_asked_for() -> None:
    tree = RadixTree()
    insert(tree, 1, 2, 3, 4, 5)
    assert tree.evict(2).tolist() == [3, 4]
    assert tree.match(ids(1, 2, 3, 4, 5)).slots.tolist() == [0, 1, 2]


def test_what_is_held_stays() -> None:
    tree = RadixTree()
    held = tree.match(ids()).node
    held = insert(tree, 1, 2, 3)
    insert(tree, 1, 2, 9, 9, first_slot=10)
    tree.lock(held)
    assert sorted(tree.evict(100).tolist()) == [12, 13]
    assert tree.num_locked == tree.num_cached == 3
    tree.unlock(held)
    assert tree.num_evictable == 3


@pytest.mark.parametrize(
    ("eviction", "first_gone"),
    [("lru", 30), ("lfu", 20), ("priority", 10)],
)
def test_what_is_evicted_first(eviction: Eviction, first_gone: int) -> None:
    tree = RadixTree(eviction)
    cheap = insert(tree, 1, 1, first_slot=10)
    rare = insert(tree, 2, 2, first_slot=20)
    old = insert(tree, 3, 3, first_slot=30)
    for node, uses, priority in ((old, 3, 5), (rare, 1, 5), (cheap, 2, 0)):
        for _ in range(uses):
            tree.lock(node, 0, priority)
            tree.unlock(node, 0)
    assert tree.evict(2).tolist() == [first_gone, first_gone + 1]


def test_who_holds_alone() -> None:
    tree = RadixTree()
    first = insert(tree, 1, 2, 3)
    tree.lock(first, 70)
    second = insert(tree, 1, 2, 9, 9, first_slot=10)
    tree.lock(second, 5)
    assert (tree.exclusive[70], tree.exclusive[5], tree.num_exclusive) == (1, 2, 3)
    tree.unlock(first, 70)
    assert (tree.exclusive[70], tree.exclusive[5], tree.num_exclusive) == (0, 4, 4)


def test_only_what_is_young_and_unused_is_discarded() -> None:
    tree = RadixTree()
    tree.stamp = 1
    insert(tree, 1, 2)
    tree.stamp = 5
    node = insert(tree, 1, 2, 3, 4)
    assert tree.newest_birth(node) == 5
    assert tree.discard(node, 5).tolist() == [2, 3]
    assert tree.num_cached == 2


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["insert", "lock", "unlock", "evict", "peek"]), TOKENS), max_size=60))
def test_the_tree_is_a_set_of_prefixes(operations: list[tuple[str, list[int]]]) -> None:
    tree = RadixTree()
    model: dict[tuple[int, ...], int] = {}
    locks: list[tuple[Node, int, tuple[int, ...]]] = []
    next_slot = 0
    for name, tokens in operations:
        prefixes = [tuple(tokens[: end + 1]) for end in range(len(tokens))]
        known = [model[prefix] for prefix in prefixes if prefix in model]
        if name == "insert":
            slots = np.arange(next_slot, next_slot + len(tokens), dtype=np.int32)
            next_slot += len(tokens)
            assert tree.insert(ids(*tokens), slots).already.tolist() == known
            for prefix, slot in zip(prefixes, slots.tolist(), strict=True):
                model.setdefault(prefix, slot)
        elif name == "lock":
            match = tree.match(ids(*tokens))
            assert match.slots.tolist() == known
            locks.append((match.node, len(locks), tuple(tokens[: len(known)])))
            tree.lock(match.node, locks[-1][1])
        elif name == "unlock" and locks:
            node, holder, _ = locks.pop(len(tokens) % len(locks))
            tree.unlock(node, holder)
        elif name == "evict":
            gone = set(tree.evict(len(tokens)).tolist())
            model = {prefix: slot for prefix, slot in model.items() if slot not in gone}
        else:
            assert tree.peek(ids(*tokens)).matched_len == len(known)
        kept = {prefix[:end] for _, _, prefix in locks for end in range(1, len(prefix) + 1)}
        assert kept <= model.keys()
        assert tree.num_cached == len(model) and tree.num_locked == len(kept)
        assert sorted(int(slot) for node in tree.nodes() for slot in node.slots) == sorted(model.values())
