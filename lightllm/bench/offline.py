"""Running a workload on a pipeline, and what it says: speed, latency, and the share of the hardware's bound."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lightllm.bench.bounds import Machine, ModelWork
from lightllm.bench.pipeline import Run, Step, TokenPipeline
from lightllm.bench.power import PowerMeter, PowerUse, metered
from lightllm.bench.summary import Summary
from lightllm.bench.tables import count, percent, seconds
from lightllm.bench.workloads import TokenRequest, WorkloadShape, make_requests, total_tokens

COLUMNS = ("workload", "tok/s", "bound", "share", "TTFT p50", "decode step p50", "MBU", "MFU", "power", "seconds")


@dataclass(frozen=True, slots=True)
class OfflineResult:
    """One workload's figures.

    tokens_per_second: input or output tokens over wall-clock time
    bound_tokens_per_second: the same tokens over the time that the steps' bytes and operations need at least
    mbu: bytes that decode steps must read over their time and the measured bandwidth
    mfu: operations of all steps over wall-clock time and the measured peak
    power: what the device drew, where that can be read
    """

    workload: str
    shape: str
    counted: str
    seconds: float
    num_steps: int
    tokens_per_second: float
    bound_tokens_per_second: float
    ttft: Summary
    tpot: Summary
    step_seconds: Summary
    decode_step_seconds: Summary
    mbu: float
    mfu: float
    power: PowerUse | None = None

    @property
    def share_of_bound(self) -> float:
        return self.tokens_per_second / self.bound_tokens_per_second

    def row(self) -> list[str]:
        """Cells for `COLUMNS`."""
        return [
            f"{self.workload} ({self.counted})",
            count(self.tokens_per_second),
            count(self.bound_tokens_per_second),
            percent(self.share_of_bound),
            seconds(self.ttft.p50),
            seconds(self.decode_step_seconds.p50) if self.decode_step_seconds.count else "-",
            percent(self.mbu) if self.decode_step_seconds.count else "-",
            percent(self.mfu),
            "-" if self.power is None else str(self.power),
            f"{self.seconds:.2f}",
        ]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share_of_bound": self.share_of_bound}


def run_workload(
    pipeline: TokenPipeline,
    shape: WorkloadShape,
    model: ModelWork,
    machine: Machine,
    seed: int = 0,
    meter: PowerMeter | None = None,
) -> tuple[OfflineResult, list[Step]]:
    """Run a workload once and measure it. Returns the figures and the steps behind them."""
    requests = make_requests(shape, pipeline.facts["vocab_size"], seed)
    with metered(meter) as power:
        run = pipeline.run(requests)
    return replace(measure(shape, requests, run, model, machine), power=power.use), run.steps


def warm_up(pipeline: TokenPipeline, shape: WorkloadShape) -> None:
    """One-time work that is not to be measured: what a server does while idle, then a few tokens of the workload."""
    pipeline.prepare()
    small = shape.scaled(min(shape.num_requests, 4), None, (2, 2) if shape.output_len[1] > 1 else (1, 1))
    pipeline.run(make_requests(small, pipeline.facts["vocab_size"], seed=987654321))


def measure(
    shape: WorkloadShape, requests: list[TokenRequest], run: Run, model: ModelWork, machine: Machine
) -> OfflineResult:
    """The figures of a run."""
    tokens = total_tokens(requests, shape.counted)
    bound = sum(model.bound(step.work, machine) for step in run.steps)
    decodes = [step for step in run.steps if step.only_decodes and step.seconds > 0]  # 0: a graph was captured in it
    decode_bytes = sum(model.bytes_of(step.work) for step in decodes)
    decode_seconds = sum(step.seconds for step in decodes)
    flops = sum(model.flops_of(step.work) for step in run.steps)
    return OfflineResult(
        workload=shape.name,
        shape=str(shape),
        counted=shape.counted,
        seconds=run.seconds,
        num_steps=len(run.steps),
        tokens_per_second=tokens / run.seconds,
        bound_tokens_per_second=tokens / bound,
        ttft=Summary.of([g.times[0] for g in run.generated]),
        tpot=Summary.of([(g.times[-1] - g.times[0]) / (len(g.times) - 1) for g in run.generated if len(g.times) > 1]),
        step_seconds=Summary.of([step.seconds for step in run.steps]),
        decode_step_seconds=Summary.of([step.seconds for step in decodes]),
        mbu=decode_bytes / decode_seconds / machine.bandwidth if decodes else 0.0,
        mfu=flops / run.seconds / machine.peak,
    )
