"""One random number per (seed, position), from a counter-based hash: no generator, no state, no order of calls.

The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): its n-th output is a hash of `start + n * GOLDEN`, so any
output can be had at once. Here n is the position and `start` is the hash of the seed, which takes seeds that follow
one another far apart. The upper 53 bits make a float64 in [0, 1). All arithmetic is modulo 2**64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: UInt64, positions: NDArray[np.integer]) -> NDArray[np.float64]:
    """Numbers in [0, 1) [N] for seeds [N] at positions [N], equal wherever and in whatever company they are made."""
    counters = _hash(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * GOLDEN
    return (_hash(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash(values: UInt64) -> UInt64:
    """SplitMix64's output function [N]: a bijection of 64 bits in which every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))
