"""What a load run says: latencies, throughput and goodput, by the definitions of docs/benchmarks.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightllm.bench.load import Served
from lightllm.bench.summary import Summary
from lightllm.bench.tables import count, format_table, seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request must meet to count for goodput, in seconds; None is no limit.

    `mtpot` bounds a request's largest gap between two chunks.
    """

    ttft: float | None = None
    tpot: float | None = None
    mtpot: float | None = None
    latency: float | None = None

    def met_by(self, served: Served) -> bool:
        pairs = (
            (self.ttft, served.ttft),
            (self.tpot, served.tpot),
            (self.mtpot, max(served.gaps, default=0.0)),
            (self.latency, served.end),
        )
        return all(limit is None or value is None or value <= limit for limit, value in pairs)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Figures of one load run; rates are per second of its whole length."""

    seconds: float
    completed: int
    failed: int
    errors: dict[str, int]
    request_rate: float
    input_rate: float
    output_rate: float
    good_requests: int
    good_request_rate: float
    good_output_rate: float
    ttft: Summary
    tpot: Summary
    itl: Summary
    mtpot: Summary
    latency: Summary

    @classmethod
    def of(cls, served: Sequence[Served], length: float, limits: Limits) -> LoadResult:
        done = [s for s in served if s.error is None]
        good = [s for s in done if limits.met_by(s)]
        return cls(
            seconds=length,
            completed=len(done),
            failed=len(served) - len(done),
            errors=dict(Counter(s.error for s in served if s.error is not None)),
            request_rate=len(done) / length,
            input_rate=sum(s.prompt_tokens for s in done) / length,
            output_rate=sum(s.output_tokens for s in done) / length,
            good_requests=len(good),
            good_request_rate=len(good) / length,
            good_output_rate=sum(s.output_tokens for s in good) / length,
            ttft=Summary.of([s.ttft for s in done]),
            tpot=Summary.of([tpot for s in done if (tpot := s.tpot) is not None]),
            itl=Summary.of([gap for s in done for gap in s.gaps]),
            mtpot=Summary.of([max(s.gaps) for s in done if s.gaps]),
            latency=Summary.of([s.end for s in done]),
        )

    def table(self) -> str:
        """Latencies, then rates."""
        named = {"TTFT": self.ttft, "TPOT": self.tpot, "ITL": self.itl, "largest gap": self.mtpot}
        rows = [
            [name, *(seconds(value) if s.count else "-" for value in (s.mean, s.p50, s.p90, s.p99, s.largest))]
            for name, s in {**named, "latency": self.latency}.items()
        ]
        rates = [
            f"{self.completed} requests in {self.seconds:.2f} s, {self.failed} failed",
            f"{count(self.request_rate)} requests/s, {count(self.input_rate)} input and "
            f"{count(self.output_rate)} output tokens/s",
            f"goodput: {self.good_requests} requests, {count(self.good_request_rate)} requests/s, "
            f"{count(self.good_output_rate)} output tokens/s",
            *(f"{times} x {error}" for error, times in self.errors.items()),
        ]
        return format_table(("", "mean", "p50", "p90", "p99", "max"), rows) + "\n\n" + "\n".join(rates)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
