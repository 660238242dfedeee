"""Experiments: a variant (policy, estimator and a value) on a workload, over several seeds.

A variant is written `estimator`, `estimator:value`, `policy/estimator` or `policy/estimator:value`; the value is
the share for `watermark`, the output length for `fixed`, the rate of preemptions for `past_future` and the reserve
for the others. `oracle` is the conservative estimator told the true lengths.

`faithful` is the set-up of the Past-Future artifact's own simulator: all requests wait at the start, prompts cost
nothing, time is counted in decode steps, admission every ten of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, cast, get_args

from lightllm.config.settings import EstimatorName, PolicyName, SchedulerSettings
from lightllm.errors import ConfigError
from lightllm.scheduler.cost import StepCost
from lightllm.simulate.clients import Clients, ClosedLoop, OpenLoop
from lightllm.simulate.record import Record, Summary, Targets
from lightllm.simulate.simulation import A100_7B, Setup, Simulation, finished, past
from lightllm.simulate.workload import Job, Workload

_VALUES = {"watermark": "watermark", "fixed": "fixed_output_len", "past_future": "eviction_target"}


@dataclass(frozen=True, slots=True)
class Variant:
    """What is compared."""

    label: str
    policy: PolicyName
    estimator: EstimatorName
    setting: str
    value: float | None
    oracle: bool = False

    def apply(self, settings: SchedulerSettings) -> SchedulerSettings:
        chosen = replace(settings, policy=self.policy, estimator=self.estimator)
        if self.value is None:
            return chosen
        value: Any = int(self.value) if self.setting == "fixed_output_len" else self.value
        return replace(chosen, **{self.setting: value})


def parse_variant(text: str) -> Variant:
    """Read `policy/estimator:value`; ConfigError names the choices."""
    head, _, number = text.partition(":")
    policy, _, estimator = head.rpartition("/")
    policy = policy or "fcfs"
    if policy not in get_args(PolicyName):
        raise ConfigError(f"policy must be one of {', '.join(get_args(PolicyName))}, got {policy!r}", param="variant")
    names = (*get_args(EstimatorName), "oracle")
    if estimator not in names:
        raise ConfigError(f"estimator must be one of {', '.join(names)}, got {estimator!r}", param="variant")
    try:
        value = float(number) if number else None
    except ValueError as error:
        raise ConfigError(f"variant {text!r}: {number!r} is not a number", param="variant") from error
    if value is not None and estimator == "fixed" and not value.is_integer():  # nor is what is not finite
        raise ConfigError(f"variant {text!r}: {number} is no output length", param="variant")
    oracle = estimator == "oracle"
    name = cast(EstimatorName, "conservative" if oracle else estimator)
    return Variant(text, cast(PolicyName, policy), name, _VALUES.get(name, "reserve"), value, oracle)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all variants have in common. `rate` opens the loop; `seconds` are measured after `warm_up`."""

    settings: SchedulerSettings
    clients: int = 80
    rate: float | None = None
    patience: float = 8.0
    seconds: float = 1000.0
    warm_up: float = 300.0
    warm_up_finished: int = 0
    total_tokens: int = 120_000
    cost: StepCost = A100_7B
    targets: Targets = field(default_factory=Targets)
    ttft_target: float | None = None
    refuse_late: bool = False


def run_variant(variant: Variant, workload: Workload | list[Job], conditions: Conditions, seed: int) -> Record:
    """One simulation, from a cold start."""
    simulation = make_simulation(variant, workload, conditions, seed)
    return simulation.run(past(conditions.warm_up + conditions.seconds))


def make_simulation(variant: Variant, workload: Workload | list[Job], conditions: Conditions, seed: int) -> Simulation:
    """The simulation that `run_variant` runs."""
    setup = Setup(
        variant.apply(conditions.settings),
        conditions.cost,
        conditions.total_tokens,
        variant.oracle,
        ttft_target=conditions.ttft_target,
        refuse_late=conditions.refuse_late,
    )
    clients, longest = _clients(workload, conditions, seed)
    return Simulation(setup, clients, longest=longest, seed=seed)


def summarise(
    variant: Variant, workload: Workload | list[Job], conditions: Conditions, seeds: int
) -> Iterator[Summary]:
    """One summary per seed 0, 1, ..."""
    for seed in range(seeds):
        record = run_variant(variant, workload, conditions, seed)
        yield record.summary(conditions.targets, conditions.warm_up)


def _clients(workload: Workload | list[Job], conditions: Conditions, seed: int) -> tuple[Clients, int]:
    """Who asks, and the longest request that can come."""
    if isinstance(workload, list):
        longest = max(len(job.prompt) + job.max_tokens for job in workload)
        return OpenLoop(iter(workload), None, seed), longest
    longest = workload.prefix_len + 11_000 + workload.max_tokens
    if conditions.rate is not None:
        return OpenLoop(workload.jobs(seed), conditions.rate, seed, conditions.patience), longest
    return ClosedLoop(workload.jobs(seed), conditions.clients, conditions.patience), longest


def run_faithful(
    variant: Variant, workload: Workload, num_requests: int, seed: int, total_tokens: int = 120_000
) -> Record:
    """The artifact's simulation (3000 requests, the newest evicted): time is in decode steps."""
    settings = SchedulerSettings(
        max_running=1000,
        max_step_tokens=32_768,
        max_waiting=num_requests,
        prefix_cache=False,
        preemption="newest",
        overtaking=0,
        admission_interval=10,
        reserve=0.03,
    )
    jobs = [replace(job, arrival=0.0) for job in islice(workload.jobs(seed), num_requests)]
    setup = Setup(variant.apply(settings), StepCost(1.0, 0.0), total_tokens, variant.oracle)
    longest = max(len(job.prompt) + job.max_tokens for job in jobs)
    simulation = Simulation(setup, OpenLoop(iter(jobs), None, seed), longest=longest, seed=seed)
    return simulation.run(finished(num_requests))
