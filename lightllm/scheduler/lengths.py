"""The lengths of all requests in arrays, one index per request, so that a step over many decodes is a few array
operations. `Request` gives them their names, and the meaning of each is told there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
_FIELDS = (
    "matched",
    "computed",
    "known",
    "valued",
    "limit",
    "prompt",
    "row",
    "serial",
    "tenant",
    "promised",
    "request_id",
    "reused",
)
_FLAGS = ("prefilling", "decoding", "stops_at_eos", "has_stops")
_FIRST_CAPACITY = 64
NO_SERIAL = -1


class Lengths:
    """Arrays [capacity] over request indices; a free index has serial -1. Capacity doubles when it must.

    `prefilling` and `decoding` say whether a request is in that state, `owner` is the request itself.
    """

    matched: Int64
    computed: Int64
    known: Int64
    valued: Int64
    limit: Int64
    prompt: Int64
    row: Int64
    serial: Int64
    tenant: Int64
    promised: Int64
    request_id: Int64
    reused: Int64
    prefilling: NDArray[np.bool_]
    decoding: NDArray[np.bool_]
    tpot_target: NDArray[np.float64]
    stops_at_eos: NDArray[np.bool_]
    has_stops: NDArray[np.bool_]
    owner: NDArray[np.object_]

    def __init__(self) -> None:
        for name in _FIELDS:
            setattr(self, name, np.zeros(_FIRST_CAPACITY, np.int64))
        self.serial.fill(NO_SERIAL)
        self.tpot_target = np.full(_FIRST_CAPACITY, np.inf)
        for name in _FLAGS:
            setattr(self, name, np.zeros(_FIRST_CAPACITY, np.bool_))
        self.owner = np.full(_FIRST_CAPACITY, None, np.object_)
        self._free = list(range(_FIRST_CAPACITY - 1, -1, -1))

    def open(self) -> int:
        """A free index; its old contents are meaningless."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def close(self, index: int) -> None:
        self.serial[index] = NO_SERIAL
        self.owner[index] = None
        self._free.append(index)

    def _grow(self) -> None:
        capacity = len(self.serial)
        for name in (*_FIELDS, *_FLAGS, "tpot_target", "owner"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros_like(array)]))
        self.serial[capacity:] = NO_SERIAL
        self.owner[capacity:] = None
        self._free.extend(range(2 * capacity - 1, capacity - 1, -1))
