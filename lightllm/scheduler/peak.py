"""The peak of future token memory (the Efficient Router's estimate; Past-Future, arXiv 2507.10150, section 3).

Each running request holds `held` tokens now and will hold one more each step until it ends after `remaining` steps.
Sorted by remaining length, longest first, request i is the i-th to be still there when it ends, so

    peak = max over i of ( held_1 + ... + held_i  +  i * remaining_i )
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def future_peak(held: Int64, remaining: Int64) -> int:
    """The largest number of tokens ever held, over K samples: `held` [R], `remaining` [K, R]."""
    if held.size == 0:
        return 0
    order = np.argsort(-remaining, axis=1, kind="stable")
    sorted_remaining = np.take_along_axis(remaining, order, axis=1)
    totals = np.cumsum(held[order], axis=1)
    ranks = np.arange(1, held.size + 1)
    return int((totals + ranks * sorted_remaining).max())
