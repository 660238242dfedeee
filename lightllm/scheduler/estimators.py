"""How many more tokens a request is expected to generate, and what that makes of the future peak.

An estimator gives a `Forecast` of the running requests; admission asks the forecast for the peak with a newcomer.
Most estimators only draw K joint samples of remaining lengths [K, R] (`Sampler.remaining`) and leave the peak to
`SampledForecast`; one with a closed form brings its own forecast (`past_future`).

    conservative          all of max_tokens: never a preemption, at the price of idle memory
    fixed                 a given output length (the upstream project's rule for an idle router)
    watermark             nothing more, up to a share of the pool ("aggressive"; vLLM's rule)
    exponential           moving average of finished lengths (upstream's newer rule)
    past_future_sampled   Past-Future as published (arXiv 2507.10150): empirical distribution, maximum of K samples
    past_future           the default: survival curve, closed-form mean and variance, margin steered by evictions
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightllm.config.settings import SchedulerSettings
from lightllm.scheduler.load import Load
from lightllm.scheduler.peak import load_peak

Int64 = NDArray[np.int64]


class Ended(NamedTuple):
    """A request that is over: its output in tokens, its limit, its tenant, and whether it ended by itself."""

    output_len: int
    limit: int
    tenant: int
    by_itself: bool


class Forecast(Protocol):
    """What the running requests, and those admitted since, will hold."""

    def peak_with(self, newcomer: Load) -> float:
        """The largest number of slots ever held with the one request of `newcomer` admitted too."""
        ...

    def accept(self) -> None:
        """The newcomer of the last question was admitted."""
        ...


class Estimator(Protocol):
    """The seam. A new estimator is one class, a name in `SchedulerSettings` and a line in `make_estimator`."""

    def capacity(self, total: int) -> int:
        """How many of `total` slots the future peak may reach."""
        ...

    def forecast(self, load: Load) -> Forecast:
        """The future of the running requests."""
        ...

    def expected_output(self, generated: int, allowed: int, tenant: int) -> float:
        """Mean of the tokens that a request with `generated` tokens still generates."""
        ...

    def on_submit(self, limit: int) -> None:
        """A request that may generate up to `limit` tokens came in."""
        ...

    def on_finish(self, ended: Ended) -> None:
        """A request is over."""
        ...

    def on_refuse(self) -> None:
        """A waiting request did not fit."""
        ...

    def on_evict(self) -> None:
        """A running request was preempted for want of memory."""
        ...


class Sampler(ABC):
    """An estimator that draws samples of remaining lengths; `reserve` is the share of the pool to leave free."""

    def __init__(self, reserve: float = 0.0) -> None:
        self._reserve = reserve

    @abstractmethod
    def remaining(self, load: Load, num_samples: int) -> Int64:
        """Joint samples [num_samples, R] of the tokens that each request has still to generate."""

    def num_samples(self, num_running: int) -> int:
        return 1

    def capacity(self, total: int) -> int:
        return int(total * (1.0 - self._reserve))

    def forecast(self, load: Load) -> Forecast:
        num_samples = self.num_samples(len(load))
        return SampledForecast(self, load, self.remaining(load, num_samples))

    def expected_output(self, generated: int, allowed: int, tenant: int) -> float:
        return float(self.remaining(Load.of_one(0, generated, allowed, 0, tenant), 1).mean())

    def on_submit(self, limit: int) -> None:  # noqa: B027
        pass

    def on_finish(self, ended: Ended) -> None:  # noqa: B027
        pass

    def on_refuse(self) -> None:  # noqa: B027
        pass

    def on_evict(self) -> None:  # noqa: B027
        pass


class SampledForecast:
    """The largest of the K samples' peaks. One sort per newcomer; all samples in one operation."""

    def __init__(self, sampler: Sampler, load: Load, remaining: Int64) -> None:
        self._sampler = sampler
        self._load = load
        self._remaining = remaining
        self._with_newcomer = load, remaining

    def peak_with(self, newcomer: Load) -> float:
        drawn = self._sampler.remaining(newcomer, len(self._remaining))
        load, remaining = self._load.plus(newcomer), np.concatenate([self._remaining, drawn], axis=1)
        self._with_newcomer = load, remaining
        return float(load_peak(load, remaining).max())

    def accept(self) -> None:
        self._load, self._remaining = self._with_newcomer


def _repeated(row: Int64, num_samples: int) -> Int64:
    return np.broadcast_to(row, (num_samples, len(row)))


class Conservative(Sampler):
    """Every request uses all of its max_tokens: no preemption ever, at the price of idle memory.

    Where max_tokens are the true lengths, as a simulation may have them, this is the oracle.
    """

    def remaining(self, load: Load, num_samples: int) -> Int64:
        return _repeated(load.allowed, num_samples)


class Fixed(Sampler):
    """Every request stops after `output_len` tokens, or at its limit if that comes first; one past it stops next."""

    def __init__(self, output_len: int, reserve: float = 0.0) -> None:
        super().__init__(reserve)
        self._output_len = output_len

    def remaining(self, load: Load, num_samples: int) -> Int64:
        expected = np.minimum(np.maximum(self._output_len - load.generated, 1), load.allowed)
        return _repeated(expected, num_samples)


class Watermark(Sampler):
    """Admit while what is held now stays under a share of the pool, as if nothing grew."""

    def __init__(self, share: float) -> None:
        super().__init__(1.0 - share)

    def remaining(self, load: Load, num_samples: int) -> Int64:
        return np.zeros((num_samples, len(load)), np.int64)


class Exponential(Sampler):
    """The moving average of output lengths, its weight falling from 1/2 to 1/25; one past it goes on a tenth more.

    Source: the upstream project's router statistics (July 2025 and later): 2048 at first, never below 64.
    """

    def __init__(self, reserve: float) -> None:
        super().__init__(reserve)
        self._average = 2048.0
        self._weight = 0.5

    def remaining(self, load: Load, num_samples: int) -> Int64:
        output = np.maximum(1.1 * load.generated, max(64.0, self._average)).astype(np.int64)
        return _repeated(np.minimum(output - load.generated, load.allowed), num_samples)

    def on_finish(self, ended: Ended) -> None:
        if ended.by_itself:
            self._average += self._weight * (ended.output_len - self._average)
            self._weight = max(0.04, 0.8 * self._weight)


def make_estimator(settings: SchedulerSettings) -> Estimator:
    """The estimator that `settings.estimator` names."""
    from lightllm.scheduler.past_future import PastFuture, SampledPastFuture

    match settings.estimator:
        case "conservative":
            return Conservative()
        case "fixed":
            return Fixed(settings.fixed_output_len, settings.reserve)
        case "watermark":
            return Watermark(settings.watermark)
        case "exponential":
            return Exponential(settings.reserve)
        case "past_future_sampled":
            return SampledPastFuture(settings.history_window, settings.reserve)
        case "past_future":
            return PastFuture(settings.history_window, settings.eviction_target)
