"""Who asks, and when: closed loop (so many clients, each waits for its answer) or open loop (arrivals by themselves).

A client of a closed loop that got no token within its patience gives up and asks the same again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from lightllm.simulate.workload import Job


class Clients(Protocol):
    def due(self, now: float) -> list[Job]:
        """Jobs that arrive up to `now`, in order."""
        ...

    def next_arrival(self) -> float:
        """When the next one comes (the past means now); infinite while nobody will."""
        ...

    def ended(self, job: Job, *, gave_up: bool) -> None:
        """A job is over, or its client lost patience."""
        ...

    @property
    def patience(self) -> float:
        """Seconds that a client waits for its first token."""
        ...


class ClosedLoop:
    """`num_clients` ask, wait and ask again at once; they begin one after the other within the first second."""

    def __init__(self, jobs: Iterator[Job], num_clients: int, patience: float) -> None:
        self._jobs = jobs
        self._waiting: list[Job] = [next(jobs) for _ in range(num_clients)]
        self.patience = patience

    def due(self, now: float) -> list[Job]:
        due, self._waiting = self._waiting, []
        return due

    def next_arrival(self) -> float:
        return 0.0 if self._waiting else float("inf")

    def ended(self, job: Job, *, gave_up: bool) -> None:
        self._waiting.append(job if gave_up else next(self._jobs))


class OpenLoop:
    """Arrivals at times of their own: those of the jobs (a trace), or a Poisson process of `rate` per second."""

    def __init__(self, jobs: Iterator[Job], rate: float | None, seed: int, patience: float = float("inf")) -> None:
        self._jobs = jobs
        self._rate = rate
        self._random = np.random.default_rng([seed, 3])
        self._clock = 0.0
        self._next: tuple[float, Job] | None = None
        self.patience = patience
        self._draw()

    def due(self, now: float) -> list[Job]:
        due = []
        while self._next is not None and self._next[0] <= now:
            due.append(self._next[1])
            self._draw()
        return due

    def next_arrival(self) -> float:
        return float("inf") if self._next is None else self._next[0]

    def ended(self, job: Job, *, gave_up: bool) -> None:
        pass

    def _draw(self) -> None:
        job = next(self._jobs, None)
        if job is None:
            self._next = None
            return
        if self._rate is None:
            self._clock = job.arrival or 0.0
        else:
            self._clock += float(self._random.exponential(1.0 / self._rate))
        self._next = self._clock, job
