"""How many more tokens a request is expected to generate. Admission asks; decoding tells what happened.

An estimator answers with K joint samples for the running requests and a newcomer, so that a policy built on
history (Past-Future, arXiv 2507.10150) and one built on limits stand behind the same seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lightllm.config.settings import SchedulerSettings
from lightllm.scheduler.request import Request

Int64 = NDArray[np.int64]


class Estimator(Protocol):
    """Expected remaining output lengths, in tokens."""

    def remaining(self, requests: Sequence[Request]) -> Int64:
        """K joint samples [K, R] of the tokens each request has still to generate."""
        ...

    def on_finish(self, request: Request) -> None:
        """A request ended by itself (stop or length)."""
        ...

    def on_evict(self, request: Request) -> None:
        """A running request was preempted for want of memory."""
        ...


class Conservative:
    """Every request uses all of its max_tokens: no preemption ever, at the price of idle memory."""

    def remaining(self, requests: Sequence[Request]) -> Int64:
        return np.array([[r.max_len - r.known_len for r in requests]], np.int64)

    def on_finish(self, request: Request) -> None:
        pass

    def on_evict(self, request: Request) -> None:
        pass


class Fixed:
    """Every request stops after `output_len` tokens, or at its limit if that comes first; one past it stops next."""

    def __init__(self, output_len: int) -> None:
        self._output_len = output_len

    def remaining(self, requests: Sequence[Request]) -> Int64:
        expected = [min(max(self._output_len - r.num_generated, 1), r.max_len - r.known_len) for r in requests]
        return np.array([expected], np.int64)

    def on_finish(self, request: Request) -> None:
        pass

    def on_evict(self, request: Request) -> None:
        pass


def make_estimator(settings: SchedulerSettings) -> Estimator:
    """The estimator that `settings.estimator` names."""
    match settings.estimator:
        case "conservative":
            return Conservative()
        case "fixed":
            return Fixed(settings.fixed_output_len)
