"""The free stack: what is handed out is unique, and comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm.memory.allocator import SlotAllocator


def test_slots_are_handed_out_in_order_and_the_spare_one_never() -> None:
    allocator = SlotAllocator(5)
    assert allocator.allocate(3).tolist() == [0, 1, 2]
    assert allocator.allocate(2).tolist() == [3, 4]
    assert allocator.num_free == 0 and allocator.spare_slot == 5


def test_nothing_costs_nothing() -> None:
    allocator = SlotAllocator(1)
    assert allocator.allocate(0).tolist() == []
    allocator.free(np.empty(0, np.int32))
    assert allocator.num_free == 1


def test_more_than_there_is_asserts() -> None:
    allocator = SlotAllocator(3)
    with pytest.raises(AssertionError, match="asked for 4 slots, 3 are free"):
        allocator.allocate(4)
    with pytest.raises(AssertionError, match="would make 4 free of 3"):
        allocator.free(np.array([0], np.int32))


@given(st.integers(1, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_slots_are_unique_and_come_back(total: int, operations: list[tuple[bool, int]]) -> None:
    allocator = SlotAllocator(total)
    held: list[int] = []
    for takes, count in operations:
        if takes:
            held += allocator.allocate(min(count, allocator.num_free)).tolist()
        else:
            given_back, held = held[:count], held[count:]
            allocator.free(np.array(given_back, np.int32))
        assert len(set(held)) == len(held) == total - allocator.num_free
        assert sorted([*held, *allocator.free_slots().tolist()]) == list(range(total))
