"""The distribution of output lengths, learnt from requests that ended and from those still running.

A request that is still running, or that stopped at its limit, tells only that its length is at least so much: it is
censored. Leaving such requests out makes the history too short, most of all after a cold start, when the first to
finish are the short ones. The product-limit estimator (Kaplan and Meier, 1958) counts them right:

    S(l) = product over lengths x < l of ( 1 - ended(x) / at_risk(x) )      S(l) = P(length >= l)

Before anything ended a broad prior stands in with the weight of a few requests, and fades as they end.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_MAX_BINS = 4096
_PRIOR_WEIGHT = 4.0
_SHORTEST_PRIOR = 16


class LengthHistory:
    """The last `window` ended requests: output length, and whether it was cut short (censored)."""

    def __init__(self, window: int) -> None:
        self._lengths: deque[int] = deque(maxlen=window)
        self._censored: deque[bool] = deque(maxlen=window)
        self.num_seen = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, length: int, *, censored: bool) -> None:
        self._lengths.append(max(1, length))
        self._censored.append(censored)
        self.num_seen += 1

    def arrays(self) -> tuple[Int64, NDArray[np.bool_]]:
        return np.array(self._lengths, np.int64), np.array(self._censored, np.bool_)


class Survival:
    """P(length >= l) for l = 0 .. longest, on bins of `resolution` tokens; zero is impossible only past `longest`."""

    def __init__(self, table: Float64, resolution: int) -> None:
        self.table = table
        self.resolution = resolution

    def at(self, lengths: Int64) -> Float64:
        """S at `lengths` of any shape."""
        bins = np.minimum(lengths // self.resolution, len(self.table) - 1)
        found: Float64 = self.table[bins]
        return found


def fit_survival(history: LengthHistory, running: Int64, longest: int) -> Survival:
    """The product-limit estimate from `history` and the outputs so far of those `running`; lengths to `longest`."""
    resolution = max(1, -(-longest // _MAX_BINS))
    num_bins = longest // resolution + 2
    ended_at, censored = history.arrays()
    ended = np.bincount(_bins(ended_at[~censored], resolution, num_bins), minlength=num_bins).astype(np.float64)
    left = np.bincount(_bins(ended_at[censored], resolution, num_bins), minlength=num_bins)
    left = left + np.bincount(_bins(running, resolution, num_bins), minlength=num_bins)
    ended += _prior(len(history), resolution, num_bins, longest)
    at_risk = np.cumsum((ended + left)[::-1])[::-1]
    hazard = ended / np.maximum(at_risk, 1e-12)
    survived = np.cumprod(1.0 - np.minimum(hazard, 1.0))
    table = np.concatenate([[1.0], survived[:-1]])
    return Survival(np.maximum(table, 1e-9), resolution)


def _bins(lengths: Int64, resolution: int, num_bins: int) -> Int64:
    return np.minimum(lengths // resolution, num_bins - 1)


def _prior(num_ended: int, resolution: int, num_bins: int, longest: int) -> Float64:
    """Pseudo-requests up to `longest`, half uniform, half log-uniform, of total weight 4 that halves per 16 ended."""
    weight = _PRIOR_WEIGHT * 0.5 ** (num_ended / 16)
    spread = np.geomspace(min(_SHORTEST_PRIOR, longest), longest, 64)
    lengths = np.concatenate([spread, np.linspace(1, longest, 64)]).astype(np.int64)
    counts = np.bincount(_bins(lengths, resolution, num_bins), minlength=num_bins).astype(np.float64)
    scaled: Float64 = counts * (weight / counts.sum())
    return scaled
