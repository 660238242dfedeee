"""Past-Future: admission by the future peak under output lengths learnt from the past.

`SampledPastFuture` is the scheduler as published (ASPLOS 2025, arXiv 2507.10150, and its artifact): a window of
finished lengths, re-sampled each pass conditionally on what each request has already generated, and the maximum of
K joint samples.

`PastFuture` is the default. With S the survival curve of output lengths (see `survival`, `curves`), a request that has
generated g tokens is still there t steps from now with probability p = S(g+t) / S(g), holding h + t tokens, so the
memory at that time has

    mean  E(t) = sum of p (h+t)           variance  V(t) = sum of p (1-p) (h+t)^2

and the peak is the maximum over a grid of t of E(t) + z sqrt(V(t)): the limit of infinitely many samples, with a
quantile where the artifact takes the maximum of a few. The margin z is steered online to a rate of preemptions per
finished request, by the rule of adaptive conformal inference (Gibbs and Candes, 2021):

    z <- z + step * (e - target)        at each end of a request; e is 1 if any was preempted since the last, else 0

An end tells nothing while nobody is refused: a server with room to spare keeps its margin.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lightllm.scheduler.curves import Curves, LengthLearner
from lightllm.scheduler.estimators import Ended, Forecast, Sampler
from lightllm.scheduler.load import Load
from lightllm.scheduler.peak import load_peak

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_FIRST_LENGTH = 512
_MOST_SAMPLES = 5
_SAMPLED_REQUESTS = 200


class SampledPastFuture(Sampler):
    """The published algorithm with the artifact's constants: window half filled with 512, K = min(5, 200/R + 1)."""

    def __init__(self, window: int, reserve: float, seed: int = 0) -> None:
        super().__init__(reserve)
        self._history: deque[int] = deque([_FIRST_LENGTH] * max(1, window // 2), maxlen=window)
        self._sorted = np.array(self._history, np.int64)
        self._stale = False
        self._random = np.random.default_rng(seed)

    def num_samples(self, num_running: int) -> int:
        return min(_MOST_SAMPLES, _SAMPLED_REQUESTS // max(1, num_running) + 1)

    def remaining(self, load: Load, num_samples: int) -> Int64:
        """Quantiles of the history above what is generated, interpolated; a newcomer's are drawn from all of it."""
        if self._stale:
            self._sorted = np.sort(np.array(self._history, np.int64))
            self._stale = False
        known = self._sorted
        first = np.searchsorted(known, load.generated)
        limit = np.maximum(load.generated + load.allowed, known[-1])
        # the empirical quantile function of { generated, history above it, limit }, at uniform u
        place = self._random.random((num_samples, len(load))) * (len(known) - first + 1)
        low = place.astype(np.int64)
        lower = np.where(low == 0, load.generated, known[np.clip(first + low - 1, 0, len(known) - 1)])
        above = first + low
        upper = np.where(above >= len(known), limit, known[np.minimum(above, len(known) - 1)])
        drawn: Int64 = np.rint(lower + (upper - lower) * (place - low)).astype(np.int64)
        fresh = load.generated == 0
        if fresh.any():
            picks = known[self._random.integers(len(known), size=(num_samples, len(load)))]
            drawn = np.where(fresh, picks, drawn)
        still: Int64 = np.minimum(np.maximum(drawn - load.generated, 0), load.allowed)
        return still

    def on_finish(self, ended: Ended) -> None:
        if ended.by_itself:
            self._history.append(ended.output_len)
            self._stale = True


class PastFuture:
    """Past-Future in closed form over a survival curve, with a margin that follows the rate of preemptions.

    `eviction_target` is the share of ends of requests that may have a preemption before them.
    """

    def __init__(self, window: int, eviction_target: float) -> None:
        self._target = eviction_target
        self._lengths = LengthLearner(window)
        self._margin = _FIRST_MARGIN
        self._evicted = False
        self._refused = False

    def capacity(self, total: int) -> int:
        return total

    def forecast(self, load: Load) -> Forecast:
        return CurveForecast(self._lengths.curves(load), load, self.margin)

    def expected_output(self, generated: int, allowed: int, tenant: int) -> float:
        return self._lengths.curves(None).mean_remaining(generated, allowed, tenant)

    def on_finish(self, ended: Ended) -> None:
        censored = not ended.by_itself or ended.output_len >= ended.limit
        self._lengths.add(ended.output_len, ended.tenant, censored=censored)
        if self._evicted or self._refused:
            moved = self._margin + _MARGIN_STEP * (self._evicted - self._target)
            self._margin = min(max(moved, _LEAST_MARGIN), _MOST_MARGIN)
        self._evicted = self._refused = False

    def on_refuse(self) -> None:
        self._refused = True

    def on_evict(self) -> None:
        self._evicted = True

    @property
    def margin(self) -> float:
        """Standard deviations to keep free: steered by evictions, and more while little is known."""
        return self._margin + _COLD_MARGIN * float(0.5 ** (self._lengths.num_seen / 16))

    def on_submit(self, limit: int) -> None:
        self._lengths.note_limit(limit)


_FIRST_MARGIN = 2.5
_COLD_MARGIN = 1.0
_LEAST_MARGIN = 0.5
_MOST_MARGIN = 5.0
_MARGIN_STEP = 0.25


class CurveForecast:
    """Mean and variance of the memory on a grid of times; a newcomer only adds to them."""

    def __init__(self, curves: Curves, load: Load, margin: float) -> None:
        self._curves = curves
        self._load = load
        self._margin = margin
        self._times = _grid(curves.num_tokens)
        self._mean, self._variance = self._moments(load)
        self._with_newcomer = load, self._mean, self._variance
        self._worst: float | None = None

    def peak_with(self, newcomer: Load) -> float:
        mean, variance = self._moments(newcomer)
        load, mean, variance = self._load.plus(newcomer), self._mean + mean, self._variance + variance
        self._with_newcomer = load, mean, variance
        peak = float((mean + self._margin * np.sqrt(variance)).max())
        if self._worst is None:
            self._worst = _worst_peak(self._load)
        return peak if self._worst >= peak else min(peak, _worst_peak(load))

    def accept(self) -> None:
        self._load, self._mean, self._variance = self._with_newcomer
        self._worst = None

    def _moments(self, load: Load) -> tuple[Float64, Float64]:
        """Mean and variance [T] of what `load` holds at each time of the grid."""
        if not len(load):
            return np.zeros(len(self._times)), np.zeros(len(self._times))
        grown = np.maximum(self._times[None, :] - load.delay[:, None], 0)  # [R, T]
        alive = self._curves.at(load.generated[:, None] + grown, self._curves.rows(load.tenant))
        alive = alive / alive[:, :1] * (grown <= load.allowed[:, None])
        tokens = load.held[:, None] + grown
        expected = alive * tokens
        mean = expected.sum(axis=0)
        variance = (expected * tokens * (1.0 - alive)).sum(axis=0)
        return mean, variance


def _worst_peak(load: Load) -> float:
    """What no outcome can pass: everyone uses all of its limit."""
    return float(load_peak(load, load.allowed[None, :])[0])


@lru_cache(maxsize=64)
def _grid(longest: int) -> Int64:
    """Times 0, 1, ... `longest` that grow by a sixth from one to the next."""
    last = max(longest, 2)
    num_points = int(np.log(last) / np.log(7 / 6)) + 2
    return np.unique(np.concatenate([[0], np.geomspace(1, last, num_points)]).astype(np.int64))
