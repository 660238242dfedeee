"""The event loop: clients ask, the scheduler plans, the machine takes its time, the record is kept.

The scheduler is the server's own class with the server's own policy, estimator, prefix tree and allocator. Time is
the machine's; the scheduler's own time is measured beside it and not added.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from lightllm.config.settings import SchedulerSettings
from lightllm.errors import ConfigError, InvalidRequest
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import FinishReason, Submit, TokenOutput, pack_ids
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.cost import StepCost, StepShape
from lightllm.scheduler.estimators import Conservative, Estimator, make_estimator
from lightllm.scheduler.policies import Policy, make_policy
from lightllm.scheduler.scheduler import Scheduler
from lightllm.simulate.clients import Clients
from lightllm.simulate.machine import END, Machine
from lightllm.simulate.record import Life, Record
from lightllm.simulate.workload import Job

A100_7B = StepCost(base=0.0125, per_token=7.2e-5, per_context=3.3e-7)
"""A 7B model in float16 on one A100-80G, by arithmetic: 14 GB of weights and 512 KiB of KV per token at 1.6 TB/s,
14 GFLOP per token at 62% of 312 TFLOP/s, and 4 ms of host and launch time."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated. `oracle` tells the estimator true lengths; `reserve` is then the share it leaves free."""

    settings: SchedulerSettings
    cost: StepCost = A100_7B
    total_tokens: int = 120_000
    oracle: bool = False
    noise: float = 0.0
    ttft_target: float | None = None
    refuse_late: bool = False


class Simulation:
    """One run. `policy` and `estimator` replace those that the settings name, for experiments."""

    def __init__(
        self,
        setup: Setup,
        clients: Clients,
        *,
        longest: int,
        seed: int = 0,
        policy: Policy | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        settings = setup.settings
        self._setup = setup
        self._clients = clients
        self._machine = Machine(setup.cost, settings.running_limit, noise=setup.noise, seed=seed)
        self._policy = make_policy(settings) if policy is None else policy
        if estimator is None:
            estimator = Conservative(settings.reserve) if setup.oracle else make_estimator(settings)
        memory = TokenMemory(setup.total_tokens, prefix_cache=settings.prefix_cache, eviction=settings.prefix_eviction)
        self.scheduler = Scheduler(
            settings, memory, self._policy, estimator, max_len=min(longest, setup.total_tokens), eos_ids=(END,)
        )
        self._now = 0.0
        self._lives: dict[int, Life] = {}
        self._waiting: dict[int, Life] = {}
        self._next_id = 0
        self.record = Record(setup.total_tokens)

    @property
    def now(self) -> float:
        """Simulated seconds since the start."""
        return self._now

    @property
    def policy(self) -> Policy:
        return self._policy

    def run(self, stop: Callable[[Simulation], bool]) -> Record:
        """Go on until `stop` says so, or nothing is left to do."""
        while not stop(self):
            self._receive()
            started = time.perf_counter()
            plan = self.scheduler.schedule(self._now)
            planned = time.perf_counter() - started
            if plan is None:
                if not self._skip_to_next_event():
                    break
                continue
            result = self._machine.run(plan)
            self._now += result.seconds
            started = time.perf_counter()
            outputs = self.scheduler.apply(result, self._now)
            applied = time.perf_counter() - started
            self._take(outputs)
            ledger = self.scheduler.memory.ledger()
            self.record.evicted += [(self._now, number) for number in self.scheduler.preempted]
            self.scheduler.preempted.clear()
            self.record.on_step(self._now, result.seconds, planned + applied, ledger.in_use, self.scheduler.num_running)
        self.record.counters = self.scheduler.counters
        self.record.open_lives = list(self._lives.values())
        self.record.end = self._now
        return self.record

    def _skip_to_next_event(self) -> bool:
        """Nothing can run: go to the next arrival; False if there will be none. Who was refused and asks again at once
        is heard when the smallest step would have ended."""
        self._take(self.scheduler.take_outputs())
        upcoming = self._clients.next_arrival()
        if upcoming == float("inf"):
            return False
        self._now = upcoming if upcoming > self._now else self._now + self._setup.cost.seconds(StepShape(1, 0))
        return True

    def _receive(self) -> None:
        """Submit what has arrived; let those go who have lost patience."""
        limit = self._now - self._clients.patience
        impatient = [life for life in self._waiting.values() if life.arrival <= limit]
        for life in impatient:
            self.scheduler.abort(life.request_id, self._now)
        if impatient:
            self._take(self.scheduler.take_outputs())
        for job in self._clients.due(self._now):
            self._submit(job)

    def _submit(self, job: Job) -> None:
        """Raises ConfigError for a job that is larger than the pool."""
        max_tokens = job.output_len if self._setup.oracle else job.max_tokens
        most = self._setup.total_tokens
        if len(job.prompt) + max_tokens > most:
            asks = f"a prompt of {len(job.prompt)} tokens and an output of up to {max_tokens}"
            raise ConfigError(f"total_tokens of {most} cannot hold {asks}", param="total_tokens")
        request_id = self._next_id
        self._next_id += 1
        arrival = self._now if job.arrival is None else job.arrival
        life = Life(request_id, job, arrival)
        self._lives[request_id] = self._waiting[request_id] = life
        self._machine.total_len[request_id] = len(job.prompt) + job.output_len
        submit = Submit(
            request_id,
            pack_ids(job.prompt),
            _PARAMS,
            max_tokens,
            request_id,
            arrival,
            tenant=job.tenant,
            ttft_target=self._setup.ttft_target,
            refuse_late=self._setup.refuse_late,
        )
        try:
            self.scheduler.submit(submit, self._now)
        except InvalidRequest:  # no step can meet its target: a server would say so, here it is served and misses it
            self.scheduler.submit(msgspec.structs.replace(submit, ttft_target=None, refuse_late=False), self._now)

    def _take(self, outputs: list[TokenOutput]) -> None:
        now = self._now
        for output in outputs:
            life = self._lives[output.request_id]
            if output.token_ids:
                if life.num_tokens == 0:
                    life.first = now
                    del self._waiting[life.request_id]
                elif now - life.last > life.max_gap:
                    life.max_gap = now - life.last
                life.last = now
                life.num_tokens += len(output.token_ids)
            if output.finish is not None:
                self._end(life, output.finish)

    def _end(self, life: Life, finish: FinishReason) -> None:
        del self._lives[life.request_id]
        self._waiting.pop(life.request_id, None)
        del self._machine.total_len[life.request_id]
        life.finish = finish
        life.end = self._now
        self.record.ended.append(life)
        self._clients.ended(life.job, gave_up=finish is FinishReason.ABORT)


_PARAMS = SamplingParams()


def past(seconds: float) -> Callable[[Simulation], bool]:
    """Stop when so much time has passed."""
    return lambda simulation: simulation.now >= seconds


def finished(count: int) -> Callable[[Simulation], bool]:
    """Stop when so many requests have ended by themselves."""
    return lambda simulation: simulation.scheduler.counters.num_finished >= count
