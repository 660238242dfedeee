"""The scheduler's own time for a step, and how long a device waits for the host that runs it.

Two loads: 256 running decodes and nobody waiting; 512 running and 2 000 waiting with a full pool, where the estimator
is asked again and again whether somebody fits. Requests that end are replaced, so that the load stays the same.

`schedule`, `apply` and both are timed alone. Then the server's engine loop, its messages and meters included, runs the
same load with an engine whose steps take 8 ms and nothing else: once with one step in flight, where the device waits
for all that the host does, and once with two as in service, where it waits for what is left on the critical path.

    python benchmarks/scheduler.py [--steps 400] [--estimator past_future] [--json PATH]
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np

from lightllm.config.settings import SchedulerSettings
from lightllm.engine.runner import Engine, Ticket
from lightllm.ipc import Ring, RingReader, RingSender, RingWriter
from lightllm.memory.token_memory import TokenMemory
from lightllm.metrics import Board, MetricSet
from lightllm.protocol.codec import Codec
from lightllm.protocol.messages import DetokenizerInbox, Submit, pack_ids
from lightllm.protocol.plan import StepPlan, StepResult
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.estimators import make_estimator
from lightllm.scheduler.policies import make_policy
from lightllm.scheduler.scheduler import Scheduler
from lightllm.workers.engine import EngineLoop, EngineParts
from lightllm.workers.meters import EngineMeters

_MAX_TOKENS = 1024
_WARM_UP = 600
STEP_SECONDS = 0.008


@dataclass
class Timing:
    """Microseconds per step: medians of schedule(), apply() and both; what the device waited, in the mean."""

    schedule: float
    apply: float
    both: float
    both_p99: float
    waits_one_in_flight: float
    waits_two_in_flight: float
    num_running: int
    num_waiting: int


class Load:
    """Keeps `num_requests` in the scheduler; outputs end at the end-of-text token after 100 to 1000 tokens.

    It begins with 600 steps that fill the pool.
    """

    def __init__(self, settings: SchedulerSettings, pool: int, num_requests: int) -> None:
        memory = TokenMemory(pool)
        policy, estimator = make_policy(settings), make_estimator(settings)
        self.scheduler = Scheduler(settings, memory, policy, estimator, max_len=4096, eos_ids=(0,))
        self._random = np.random.default_rng(0)
        self._target = num_requests
        self._next_id = 0
        self._end: dict[int, int] = {}
        self._ends_at = np.zeros(settings.max_running, np.int64)
        for step in range(_WARM_UP):
            self.step(float(step))

    def step(self, now: float) -> tuple[float, float, int, int]:
        """One step without a device; seconds of schedule() and of apply(), and how many then run and wait."""
        for submit in self.fresh():
            self.scheduler.submit(submit, now)
        start = time.perf_counter()
        plan = self.scheduler.schedule(now)
        middle = time.perf_counter()
        assert plan is not None
        result = self.result(plan)
        again = time.perf_counter()
        self.scheduler.apply(result, now)
        end = time.perf_counter()
        return middle - start, end - again, self.scheduler.num_running, self.scheduler.num_waiting

    def fresh(self) -> list[Submit]:
        """Requests in place of those that ended."""
        return [self._submit() for _ in range(self._target - self.scheduler.num_requests)]

    def _submit(self) -> Submit:
        number, self._next_id = self._next_id, self._next_id + 1
        prompt = self._random.integers(1, 30_000, int(self._random.integers(16, 256)), np.int32)
        self._end[number] = len(prompt) + int(self._random.integers(100, 1000))
        return Submit(number, pack_ids(prompt), SamplingParams(max_tokens=_MAX_TOKENS), _MAX_TOKENS, number, 0.0)

    def result(self, plan: StepPlan) -> StepResult:
        for row in plan.opened:
            self._ends_at[row.row] = self._end[row.seed]
        ends = (plan.starts + plan.lens >= self._ends_at[plan.rows])[plan.sampled]
        token_ids = np.where(ends, 0, 7).astype(np.int32)
        return StepResult(plan.step, token_ids, np.ones(len(token_ids), np.int32), seconds=STEP_SECONDS)


class SleepingEngine:
    """Every step takes 8 ms from its launch or from the end of the step before, whichever is later."""

    def __init__(self, load: Load, reader: RingReader) -> None:
        self._load = load
        self._reader = reader
        self._free_at = time.perf_counter()
        self.waits: list[float] = []

    def launch(self, plan: StepPlan) -> Ticket:
        now = time.perf_counter()
        self.waits.append(max(0.0, now - self._free_at))
        self._free_at = max(now, self._free_at) + STEP_SECONDS
        return Ticket(plan.step, cast(Any, (plan, self._free_at)))

    def collect(self, ticket: Ticket) -> StepResult:
        plan, end = cast(tuple[StepPlan, float], ticket.work)
        result = self._load.result(plan)
        self._reader.skip_all()
        time.sleep(max(0.0, end - time.perf_counter()))
        return result

    def close(self) -> None:
        pass


def device_waits(load: Load, steps: int, depth: int) -> float:
    """Mean microseconds per step in which the device has nothing to do."""
    ring = Ring.create()
    engine = SleepingEngine(load, RingReader(ring))
    parts = EngineParts(load.scheduler, cast(Engine, engine), {}, ())
    outbox = RingSender(RingWriter(ring), Codec[DetokenizerInbox](cast(Any, DetokenizerInbox)).encode)
    meters = EngineMeters(MetricSet(Board.create()), load.scheduler)
    loop = EngineLoop(parts, [], outbox, depth=depth, meters=meters)
    for _ in range(steps + 2 * depth):
        for submit in load.fresh():
            loop.handle(submit)
        loop.step()
    ring.close()
    return float(np.mean(engine.waits[2 * depth :]) * 1e6)


def measure(settings: SchedulerSettings, pool: int, num_requests: int, steps: int) -> Timing:
    """Over `steps` steps."""
    load = Load(settings, pool, num_requests)
    readings = np.array([load.step(float(_WARM_UP + step)) for step in range(steps)])
    both = (readings[:, 0] + readings[:, 1]) * 1e6
    return Timing(
        schedule=float(np.median(readings[:, 0]) * 1e6),
        apply=float(np.median(readings[:, 1]) * 1e6),
        both=float(np.median(both)),
        both_p99=float(np.percentile(both, 99)),
        waits_one_in_flight=device_waits(Load(settings, pool, num_requests), steps, 1),
        waits_two_in_flight=device_waits(Load(settings, pool, num_requests), steps, 2),
        num_running=round(float(readings[:, 2].mean())),
        num_waiting=round(float(readings[:, 3].mean())),
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
        rows[name] = asdict(measure(settings, pool, num_requests, arguments.steps))
    columns = [field.name for field in fields(Timing)]
    print(f"{'microseconds per step':26}", *(f"{column.replace('_', ' '):>20}" for column in columns))
    for name, row in rows.items():
        print(f"{name:26}", *(f"{row[column]:20.0f}" for column in columns))
    if arguments.json:
        about = {
            "command": "python benchmarks/scheduler.py",
            "machine": platform.processor() or platform.machine(),
            "estimator": arguments.estimator,
            "step_seconds": STEP_SECONDS,
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(about | rows, file, indent=2)


if __name__ == "__main__":
    main()
