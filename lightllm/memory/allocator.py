"""The slot allocator: a stack of free slot numbers. It knows numbers only, neither tensors nor requests.

Slots 0..total-1 hold tokens; slot `total` is the spare one that padding writes to, and is never handed out.
Both operations are O(n) copies of a contiguous piece of the stack (TokenAttention, page size 1).

    stack   [ f f f f f f f . . . . ]
              0           ^ free count
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int32]


class SlotAllocator:
    """Hands out and takes back KV slots. Asking for more than is free is a bug of the caller and asserts."""

    def __init__(self, total: int) -> None:
        assert total > 0, f"a pool needs at least one slot, got {total}"
        self.total = total
        self._stack: Slots = np.arange(total - 1, -1, -1, dtype=np.int32)
        self._num_free = total

    @property
    def spare_slot(self) -> int:
        return self.total

    @property
    def num_free(self) -> int:
        return self._num_free

    def allocate(self, count: int) -> Slots:
        """Take `count` slots, ascending within the piece taken."""
        assert 0 <= count <= self._num_free, f"asked for {count} slots, {self._num_free} are free"
        self._num_free -= count
        return self._stack[self._num_free : self._num_free + count][::-1].copy()

    def free(self, slots: Slots) -> None:
        """Give slots back."""
        end = self._num_free + len(slots)
        assert end <= self.total, f"freeing {len(slots)} slots would make {end} free of {self.total}"
        self._stack[self._num_free : end] = slots[::-1]
        self._num_free = end

    def free_slots(self) -> Slots:
        """The free slot numbers, for checks."""
        return self._stack[: self._num_free].copy()
