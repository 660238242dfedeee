"""What a simulation saw, and the numbers made of it.

Goodput is the tokens, prompts and outputs, of requests that met both targets, per second (Past-Future, section 5.1):
the first token within `ttft` seconds and no gap between tokens beyond `gap` seconds. Only requests that ended after
the warm-up count; a request that gave up or was refused meets nothing and is counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightllm.protocol.messages import FinishReason
from lightllm.scheduler.results import Counters
from lightllm.simulate.workload import Job


class Life:
    """One request's life, in simulated seconds."""

    __slots__ = ("arrival", "end", "finish", "first", "job", "last", "max_gap", "num_tokens", "request_id")

    def __init__(self, request_id: int, job: Job, arrival: float) -> None:
        self.request_id = request_id
        self.job = job
        self.arrival = arrival
        self.first = self.last = self.end = float("inf")
        self.max_gap = 0.0
        self.num_tokens = 0
        self.finish: FinishReason | None = None

    @property
    def ttft(self) -> float:
        return self.first - self.arrival

    @property
    def by_itself(self) -> bool:
        return self.finish in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds to the first token, and the longest gap between tokens."""

    ttft: float = 10.0
    gap: float = 1.5

    def met(self, life: Life) -> bool:
        return life.by_itself and life.ttft <= self.ttft and life.max_gap <= self.gap


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one run. Shares lie in [0, 1]; times in seconds; scheduler time in microseconds."""

    goodput: float
    output_goodput: float
    throughput: float
    sla_share: float
    num_finished: int
    num_gave_up: int
    num_refused: int
    evictions_per_finished: float
    evicted_share: float
    recomputed_share: float
    hit_share: float
    memory_mean: float
    memory_peak: float
    running_mean: float
    ttft_p50: float
    ttft_p99: float
    gap_p50: float
    gap_p99: float
    scheduler_us_p50: float
    scheduler_us_p99: float
    num_steps: int
    seconds: float


class Record:
    """Fills while a simulation runs. `evictions` are (time, request) of every preemption."""

    def __init__(self, total_tokens: int) -> None:
        self._total = total_tokens
        self._steps: list[tuple[float, float, float, int, int]] = []
        self.ended: list[Life] = []
        self.open_lives: list[Life] = []
        self.evicted: list[tuple[float, int]] = []
        self.counters = Counters()
        self.end = 0.0

    def on_step(self, now: float, seconds: float, host_seconds: float, in_use: int, num_running: int) -> None:
        self._steps.append((now, seconds, host_seconds, in_use, num_running))

    def steps(self) -> NDArray[np.float64]:
        """[steps, 5]: time at the end, duration, host seconds, slots in use, requests running."""
        return np.array(self._steps, np.float64).reshape(-1, 5)

    def summary(self, targets: Targets | None = None, warm_up: float = 0.0, tenant: str | None = None) -> Summary:
        """The numbers of the time after `warm_up` seconds; with `tenant`, of that tenant's requests alone."""
        targets = targets or Targets()
        steps = self.steps()
        steps = steps[steps[:, 0] > warm_up]
        seconds = max(self.end - warm_up, 1e-9)
        ended = [life for life in self.ended if life.end > warm_up and tenant in (None, life.job.tenant)]
        done = [life for life in ended if life.by_itself]
        met = [life for life in done if targets.met(life)]
        evicted = [number for at, number in self.evicted if at > warm_up]
        finished_ids = {life.request_id for life in done}
        ttft, gaps = [life.ttft for life in done], [life.max_gap for life in done]
        weights = steps[:, 1]
        counters = self.counters
        return Summary(
            goodput=sum(len(life.job.prompt) + life.num_tokens for life in met) / seconds,
            output_goodput=sum(life.num_tokens for life in met) / seconds,
            throughput=sum(len(life.job.prompt) + life.num_tokens for life in done) / seconds,
            sla_share=len(met) / max(1, len(done)),
            num_finished=len(done),
            num_gave_up=sum(life.finish is FinishReason.ABORT for life in ended),
            num_refused=sum(life.finish is FinishReason.ERROR for life in ended),
            evictions_per_finished=len(evicted) / max(1, len(done)),
            evicted_share=len(set(evicted) & finished_ids) / max(1, len(done)),
            recomputed_share=counters.recomputed_tokens / max(1, counters.queried_tokens),
            hit_share=counters.hit_tokens / max(1, counters.queried_tokens),
            memory_mean=float(np.average(steps[:, 3], weights=weights)) / self._total if len(steps) else 0.0,
            memory_peak=float(steps[:, 3].max(initial=0)) / self._total,
            running_mean=float(np.average(steps[:, 4], weights=weights)) if len(steps) else 0.0,
            ttft_p50=_percentile(ttft, 50),
            ttft_p99=_percentile(ttft, 99),
            gap_p50=_percentile(gaps, 50),
            gap_p99=_percentile(gaps, 99),
            scheduler_us_p50=_percentile(steps[:, 2] * 1e6, 50),
            scheduler_us_p99=_percentile(steps[:, 2] * 1e6, 99),
            num_steps=len(steps),
            seconds=seconds,
        )


def _percentile(values: list[float] | NDArray[np.float64], q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else float("nan")
