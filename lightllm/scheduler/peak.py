"""The peak of future token memory (the Efficient Router's estimate; Past-Future, arXiv 2507.10150, section 3).

Each running request holds `held` tokens now and will hold one more each step until it ends after `remaining` steps.
Sorted by remaining length, longest first, request i is the i-th to be still there when it ends, so

    peak = max over i of ( held_1 + ... + held_i  +  i * remaining_i )

A prompt with chunks to come begins to grow only `delay` steps later: it counts as ending at delay + remaining while
holding `delay` tokens less, which is exact from the moment it grows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightllm.scheduler.load import Load

Int64 = NDArray[np.int64]


def future_peak(held: Int64, remaining: Int64) -> Int64:
    """The largest number of tokens ever held, [K] of K samples: `held` [R] and `remaining` [K, R]."""
    if held.size == 0:
        return np.zeros(len(remaining), np.int64)
    order = np.argsort(-remaining, axis=1)
    sorted_remaining = np.take_along_axis(remaining, order, axis=1)
    totals = np.cumsum(held[order], axis=1)
    totals += np.arange(1, held.size + 1) * sorted_remaining
    peaks: Int64 = totals.max(axis=1)
    at_least: Int64 = np.maximum(peaks, held.sum())
    return at_least


def load_peak(load: Load, remaining: Int64) -> Int64:
    """The future peak [K] of a load whose requests generate `remaining` [K, R] more tokens."""
    return future_peak(load.held - load.delay, remaining + load.delay)
