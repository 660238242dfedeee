"""`lightllm simulate`: what the scheduler would do, without a model or a GPU."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, fields

from lightllm.config.checks import check_at_least_one, check_not_negative, check_positive
from lightllm.config.settings import SchedulerSettings
from lightllm.errors import ConfigError
from lightllm.scheduler.cost import load_step_cost
from lightllm.simulate.experiment import Conditions, parse_variant, run_faithful, summarise
from lightllm.simulate.record import Summary, Targets
from lightllm.simulate.report import Result, table, write_json, write_plot
from lightllm.simulate.simulation import A100_7B
from lightllm.simulate.trace import read_trace
from lightllm.simulate.workload import Job, Workload, find_workload


@dataclass(frozen=True, slots=True)
class SimulateCommand:
    """Run the scheduler against a simulated engine and compare policies and length estimators."""

    workload: tuple[str, ...] = ("d1",)
    """d1, d2, d3, heavy, chat or tenants; several give several rows."""
    trace: str | None = None
    """CSV or JSON-lines file of real arrivals and lengths, in place of a workload."""
    variant: tuple[str, ...] = ("past_future",)
    """What to compare: [policy/]estimator[:value], as in vtc/past_future or watermark:0.85; "oracle" knows lengths."""
    clients: int = 80
    """Clients of a closed loop."""
    rate: float | None = None
    """Arrivals per second of an open loop, in place of clients."""
    patience: float = 8.0
    """Seconds after which a client without a first token gives up."""
    seconds: float = 1000.0
    """Simulated seconds that are measured."""
    warm_up: float = 300.0
    """Simulated seconds before that."""
    seeds: int = 1
    """Runs, from seed 0; the table shows their mean and the spread of the goodput."""
    total_tokens: int = 120_000
    """KV slots."""
    max_step_tokens: int = 2048
    """Token budget of a step."""
    max_running: int = 512
    """Most requests that run at the same time."""
    ttft_target: float = 10.0
    """Seconds to the first token that count as met."""
    gap_target: float = 1.5
    """Longest gap between tokens that counts as met."""
    refuse_late: bool = False
    """Requests carry the TTFT target and ask to be refused when it cannot be met (policy deadline)."""
    step_cost: str | None = None
    """JSON file with a measured step-cost model; a 7B model on an A100-80G when omitted."""
    faithful: int | None = None
    """Run the set-up of the Past-Future artifact with so many requests instead (time in decode steps)."""
    json: str | None = None
    """Write all numbers there."""
    plot: str | None = None
    """Write bars of goodput and SLA share there (PNG)."""

    def run(self) -> int:
        """Print the table as it grows; returns the exit status."""
        self._check()
        results: list[Result] = []
        for name, load in self._loads():
            for text in self.variant:
                summaries = tuple(self._summaries(text, load))
                results.append(Result(name, text, summaries))
                print(f"{name} {text}: goodput {results[-1].mean('goodput'):.0f} tok/s", file=sys.stderr)
        print(table(results))
        if self.json:
            about = {field.name: getattr(self, field.name) for field in fields(self)}
            write_json(self.json, results, about | {"machine": platform.machine(), "python": platform.python_version()})
        if self.plot:
            write_plot(self.plot, results)
        return 0

    def _check(self) -> None:
        """Raise ConfigError for a number that no simulation can have, and for nothing to simulate."""
        for name in ("workload", "variant"):
            if not getattr(self, name):
                raise ConfigError(f"{name} names nothing to simulate; give at least one", param=name)
        check_at_least_one(self, "seeds", "clients", "total_tokens", "faithful")
        check_positive(self, "rate", "patience", "seconds", "ttft_target", "gap_target")
        check_not_negative(self, "warm_up")

    def _loads(self) -> list[tuple[str, Workload | list[Job]]]:
        if self.trace is not None:
            return [(self.trace, read_trace(self.trace, self.total_tokens))]
        return [(name, find_workload(name)) for name in self.workload]

    def _summaries(self, text: str, load: Workload | list[Job]) -> list[Summary]:
        variant = parse_variant(text)
        if self.faithful is not None:
            if isinstance(load, list):
                raise ConfigError("faithful runs named workloads, not traces", param="faithful")
            return [
                run_faithful(variant, load, self.faithful, seed, self.total_tokens).summary()
                for seed in range(self.seeds)
            ]
        settings = SchedulerSettings(
            max_running=self.max_running, max_step_tokens=self.max_step_tokens, max_waiting=1_000_000
        )
        conditions = Conditions(
            settings,
            clients=self.clients,
            rate=self.rate,
            patience=self.patience,
            seconds=self.seconds,
            warm_up=self.warm_up,
            total_tokens=self.total_tokens,
            cost=A100_7B if self.step_cost is None else load_step_cost(self.step_cost),
            targets=Targets(self.ttft_target, self.gap_target),
            ttft_target=self.ttft_target,
            refuse_late=self.refuse_late,
        )
        summaries = list(summarise(variant, load, conditions, self.seeds))
        if isinstance(load, list) and not any(s.num_finished + s.num_gave_up + s.num_refused for s in summaries):
            message = f"no request of the trace ended after the warm-up of {self.warm_up:g} s; lower --warm-up"
            raise ConfigError(message, param="warm_up")
        return summaries
