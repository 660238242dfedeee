"""The ledger of the token memory through sharing, eviction and the lack of room."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm.memory.token_memory import TokenMemory


def share(memory: TokenMemory, tokens: list[int]) -> None:
    memory.share(np.array(tokens, np.int32), memory.allocate(len(tokens)))


def test_slots_are_free_held_or_cached() -> None:
    memory = TokenMemory(10)
    slots = memory.allocate(4)
    ledger = memory.ledger()
    assert (ledger.free, ledger.held, ledger.cached, ledger.balanced) == (6, 4, 0, True)
    memory.share(np.array([1, 2, 3, 4], np.int32), slots)
    ledger = memory.ledger()
    assert (ledger.free, ledger.held, ledger.cached, ledger.locked, ledger.in_use) == (6, 0, 4, 0, 0)
    memory.check()


def test_cached_slots_make_room_when_asked_for() -> None:
    memory = TokenMemory(10)
    share(memory, [1, 2, 3, 4, 5, 6])
    assert memory.available == 10
    memory.allocate(7)
    assert memory.num_evicted == 3 and memory.available == 3
    assert memory.peek(np.array([1, 2, 3, 4], np.int32)).matched_len == 3
    memory.check()


def test_locked_slots_are_not_available() -> None:
    memory = TokenMemory(10)
    share(memory, [1, 2, 3, 4])
    match = memory.match(np.array([1, 2], np.int32))
    memory.lock(match.node, 3)
    assert memory.available == 8 and memory.exclusive(np.array([3, 200])).tolist() == [2, 0]
    with pytest.raises(AssertionError, match="asked for 9 slots, 8 are available"):
        memory.allocate(9)
    memory.unlock(match.node, 3)
    memory.forget()
    assert memory.ledger().free == 10


def test_without_a_prefix_cache_nothing_is_ever_cached() -> None:
    memory = TokenMemory(8, prefix_cache=False)
    slots = memory.allocate(3)
    tokens = np.array([1, 2, 3], np.int32)
    assert len(memory.share(tokens, slots).already) == 0
    assert memory.peek(tokens).matched_len == len(memory.match(tokens)) == 0
    assert memory.ledger().held == 3
