"""The engine's readings for /metrics: what the scheduler counts and what each step took."""

from __future__ import annotations

from dataclasses import fields

from lightllm.errors import InvalidRequest, Overloaded
from lightllm.metrics import names
from lightllm.metrics.board import Counter, MetricSet
from lightllm.protocol.plan import StepPlan
from lightllm.scheduler.cost import StepCost
from lightllm.scheduler.results import Counters, TenantCounters
from lightllm.scheduler.scheduler import Scheduler


class _TenantMeters:
    """The counters of one tenant, and what was published of them."""

    def __init__(self, metrics: MetricSet, name: str, counts: TenantCounters) -> None:
        self.counts = counts
        self.totals = {
            "queried_tokens": metrics.counter(names.TENANT_QUERIED, tenant=name),
            "hit_tokens": metrics.counter(names.TENANT_HIT, tenant=name),
            "num_preemptions": metrics.counter(names.TENANT_PREEMPTIONS, tenant=name),
            "num_refused": metrics.counter(names.TENANT_REFUSED, tenant=name),
        }
        self.seen = dict.fromkeys(self.totals, 0)


def _publish(counts: Counters | TenantCounters, totals: dict[str, Counter], seen: dict[str, int]) -> None:
    """Add what `counts` gained since they were `seen`."""
    for name, counter in totals.items():
        value = getattr(counts, name)
        if value != seen[name]:
            counter.inc(value - seen[name])
            seen[name] = value


class EngineMeters:
    """Writes to one metric board. Counters of the scheduler are published as differences since the last reading."""

    def __init__(self, metrics: MetricSet, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._running = metrics.gauge(names.REQUESTS_RUNNING)
        self._waiting = metrics.gauge(names.REQUESTS_WAITING)
        self._usage = metrics.gauge(names.KV_CACHE_USAGE)
        self._capacity = metrics.gauge(names.KV_SLOT_CAPACITY)
        self._slots = {state: metrics.gauge(names.KV_SLOTS, state=state) for state in ("free", "cached", "held")}
        self._steps = metrics.counter(names.ENGINE_STEPS)
        self._step_tokens = metrics.histogram(names.STEP_TOKENS_RUN)
        self._step_seconds = metrics.histogram(names.STEP_DURATION)
        self._scheduler_seconds = metrics.histogram(names.SCHEDULER_SECONDS)
        counters = scheduler.counters
        self._latencies = (
            (counters.queue_seconds, metrics.histogram(names.QUEUE_TIME)),
            (counters.prefill_seconds, metrics.histogram(names.PREFILL_TIME)),
        )
        self._totals = {
            "queried_tokens": metrics.counter(names.PREFIX_CACHE_QUERIED),
            "hit_tokens": metrics.counter(names.PREFIX_CACHE_HIT),
            "num_preemptions": metrics.counter(names.PREEMPTIONS),
            "num_refused": metrics.counter(names.REQUESTS_REFUSED, reason=Overloaded.code),
        }
        self._refused = {
            code: metrics.counter(names.REQUESTS_REFUSED, reason=code)
            for code in (InvalidRequest.code, Overloaded.code)
        }
        self._tenants = [_TenantMeters(metrics, name, counts) for name, counts in counters.tenants.items()]
        self._evicted = metrics.counter(names.EVICTED_TOKENS)
        self._cost = {field.name: metrics.gauge(names.STEP_COST, coefficient=field.name) for field in fields(StepCost)}
        self._seen = dict.fromkeys([*self._totals, "evicted"], 0)
        self.read()

    def planned(self, plan: StepPlan, seconds: float) -> None:
        """A step was planned in `seconds` of host time, and is about to be launched."""
        self._step_tokens.observe(plan.num_tokens)
        self._scheduler_seconds.observe(seconds)
        self.read()

    def refused(self, tenant: str, code: str) -> None:
        """A request was refused when it came in, with an error of that code, by a limit that only the engine knows."""
        self._refused[code].inc()
        self._scheduler.counters.tenant(tenant).num_refused += 1

    def stepped(self, seconds: float) -> None:
        """A step's result arrived; it took `seconds` on the device."""
        self._steps.inc()
        self._step_seconds.observe(seconds)
        cost = self._scheduler.step_cost
        if cost is not None:
            for name, gauge in self._cost.items():
                gauge.set(getattr(cost, name))

    def read(self) -> None:
        """Publish gauges, latencies and what the counters gained; before a step, and when there is nothing to do.

        The supervisor takes gauges that show work, and no step for long, for an engine that hangs.
        """
        scheduler = self._scheduler
        ledger = scheduler.memory.ledger()
        self._running.set(scheduler.num_running)
        self._waiting.set(scheduler.num_waiting)
        self._capacity.set(ledger.total)
        self._usage.set(ledger.in_use / ledger.total)
        self._slots["free"].set(ledger.free)
        self._slots["cached"].set(ledger.evictable)
        self._slots["held"].set(ledger.in_use)
        _publish(scheduler.counters, self._totals, self._seen)
        for tenant in self._tenants:
            _publish(tenant.counts, tenant.totals, tenant.seen)
        for seconds, histogram in self._latencies:
            while seconds:
                histogram.observe(seconds.popleft())
        self._evicted.inc(scheduler.memory.num_evicted - self._seen["evicted"])
        self._seen["evicted"] = scheduler.memory.num_evicted
