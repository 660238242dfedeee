"""The scheduler's own time for a step: schedule() and apply(), without any device.

Two cases: 256 running decodes and nobody waiting; 512 running and 2 000 waiting with a full pool, where every step
asks the estimator whether somebody fits. Requests that end are replaced, so that the load stays the same.

    python benchmarks/scheduler.py [--steps 400] [--estimator past_future] [--json PATH]
"""

import argparse
import json
import platform
import time
from dataclasses import dataclass

import numpy as np

from lightllm.config.settings import SchedulerSettings
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import Submit, pack_ids
from lightllm.protocol.plan import StepPlan, StepResult
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.estimators import make_estimator
from lightllm.scheduler.policies import make_policy
from lightllm.scheduler.scheduler import Scheduler

_MAX_TOKENS = 1024


@dataclass
class Timing:
    """Microseconds of schedule() and apply() in one step, and of both."""

    schedule: float
    apply: float
    both: float
    both_p99: float
    num_running: float
    num_waiting: float


class Load:
    """Keeps `num_requests` in the scheduler; outputs end at the end-of-text token after 100 to 1000 tokens."""

    def __init__(self, settings: SchedulerSettings, pool: int, num_requests: int) -> None:
        memory = TokenMemory(pool)
        policy, estimator = make_policy(settings), make_estimator(settings)
        self.scheduler = Scheduler(settings, memory, policy, estimator, max_len=4096, eos_ids=(0,))
        self._random = np.random.default_rng(0)
        self._target = num_requests
        self._next_id = 0
        self._end: dict[int, int] = {}
        self._ends_at = np.zeros(settings.max_running, np.int64)

    def fill(self) -> None:
        while self.scheduler.num_requests < self._target:
            prompt = self._random.integers(1, 30_000, int(self._random.integers(16, 256)), np.int32)
            self._end[self._next_id] = len(prompt) + int(self._random.integers(100, 1000))
            params = SamplingParams(max_tokens=_MAX_TOKENS)
            self.scheduler.submit(Submit(self._next_id, pack_ids(prompt), params, _MAX_TOKENS, self._next_id, 0.0), 0.0)
            self._next_id += 1

    def result(self, plan: StepPlan) -> StepResult:
        for row in plan.opened:
            self._ends_at[row.row] = self._end[row.seed]
        ends = (plan.starts + plan.lens >= self._ends_at[plan.rows])[plan.sampled]
        token_ids = np.where(ends, 0, 7).astype(np.int32)
        return StepResult(plan.step, token_ids, np.ones(len(token_ids), np.int32), seconds=0.008)


def measure(settings: SchedulerSettings, pool: int, num_requests: int, steps: int) -> Timing:
    """Medians over `steps` steps, after a warm-up that fills the pool."""
    load = Load(settings, pool, num_requests)
    scheduler = load.scheduler
    readings = []
    for step in range(steps + 600):
        load.fill()
        start = time.perf_counter()
        plan = scheduler.schedule(float(step))
        middle = time.perf_counter()
        assert plan is not None
        result = load.result(plan)
        again = time.perf_counter()
        scheduler.apply(result, float(step))
        end = time.perf_counter()
        readings.append((middle - start, end - again, scheduler.num_running, scheduler.num_waiting))
    kept = np.array(readings[600:])
    both = (kept[:, 0] + kept[:, 1]) * 1e6
    return Timing(
        schedule=float(np.median(kept[:, 0]) * 1e6),
        apply=float(np.median(kept[:, 1]) * 1e6),
        both=float(np.median(both)),
        both_p99=float(np.percentile(both, 99)),
        num_running=float(kept[:, 2].mean()),
        num_waiting=float(kept[:, 3].mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--estimator", default="past_future")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = {}
    for name, rows_running, pool, num_requests in (
        ("256 running, none waiting", 256, 400_000, 256),
        ("512 running, 2000 waiting", 640, 280_000, 2512),
    ):
        settings = SchedulerSettings(
            max_running=rows_running, max_step_tokens=8192, max_waiting=8192, estimator=arguments.estimator
        )
        rows[name] = measure(settings, pool, num_requests, arguments.steps)
    print(f"{'load':28} {'schedule us':>12} {'apply us':>10} {'both us':>10} {'p99':>8} {'running':>8} {'waiting':>8}")
    for name, row in rows.items():
        print(
            f"{name:28} {row.schedule:12.0f} {row.apply:10.0f} {row.both:10.0f} {row.both_p99:8.0f}"
            f" {row.num_running:8.0f} {row.num_waiting:8.0f}"
        )
    if arguments.json:
        report = {"machine": platform.processor() or platform.machine(), "estimator": arguments.estimator}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report | {name: vars(row) for name, row in rows.items()}, file, indent=2)


if __name__ == "__main__":
    main()
