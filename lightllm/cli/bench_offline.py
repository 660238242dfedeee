"""`lightllm bench offline`: the workloads of an engine by itself, each beside what the hardware allows."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lightllm.cli.flags import ModelFlags, parse, settings_of
from lightllm.cli.precheck import check_config
from lightllm.config.checks import check_at_least_one
from lightllm.config.locate import find_model
from lightllm.config.settings import EngineSettings, SchedulerSettings
from lightllm.errors import ConfigError

if TYPE_CHECKING:
    from lightllm.bench.bounds import Machine
    from lightllm.bench.offline import OfflineResult
    from lightllm.bench.pipeline import Step
    from lightllm.bench.workloads import WorkloadShape
    from lightllm.scheduler.cost import StepCost

WorkloadName = Literal["single", "batch32", "prefill", "ragged", "throughput", "all"]


@dataclass(frozen=True, slots=True)
class BenchOfflineFlags:
    """Measure an engine's speed: no HTTP, no text, random token ids, end of sequence ignored.

    A bare config.json is enough with --dummy. Sizes can be scaled down for small machines.
    """

    model: ModelFlags = field(default_factory=ModelFlags)
    workload: tuple[WorkloadName, ...] = ()
    """Which workload; all when omitted."""
    requests: int | None = None
    """Number of requests instead of the workload's own."""
    input_len: str | None = None
    """Prompt tokens, as 128 or 16-256, instead of the workload's own."""
    output_len: str | None = None
    """Output tokens, as 64 or 16-128, instead of the workload's own."""
    repeats: int = 1
    """Runs of each workload; the fastest counts."""
    json: str | None = None
    """File for all figures; - for standard output."""
    cost_model: str | None = None
    """File for the step-cost model fitted to these runs, for `lightllm simulate` and --step-cost."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)


def run(argv: Sequence[str]) -> int:
    """Run the workloads and print one table."""
    flags = parse(BenchOfflineFlags, "bench offline", argv)
    shapes = chosen_shapes(flags)
    directory = find_model(flags.model.model)
    check_config(directory)

    from lightllm.bench.pipeline import TokenPipeline

    pipeline = TokenPipeline(settings_of(flags.model, flags.engine, flags.scheduler), directory)
    gc.collect()
    gc.freeze()  # as in a server's engine: collections during a run need not look at what was loaded
    try:
        for shape in shapes:
            _check_fits(shape, pipeline.facts["max_model_len"])
        session = _Session(flags, pipeline, directory)
        for shape in shapes:
            session.measure(shape)
        session.report()
    finally:
        pipeline.close()
    return 0


def chosen_shapes(flags: BenchOfflineFlags) -> list[WorkloadShape]:
    """The workloads asked for, scaled. Raises ConfigError for sizes that make no sense."""
    from lightllm.bench.workloads import SHAPES, parse_range

    check_at_least_one(flags, "requests", "repeats")
    names = list(SHAPES) if not flags.workload or "all" in flags.workload else list(dict.fromkeys(flags.workload))
    input_len, output_len = parse_range(flags.input_len, "input_len"), parse_range(flags.output_len, "output_len")
    return [SHAPES[name].scaled(flags.requests, input_len, output_len) for name in names]


def _check_fits(shape: WorkloadShape, max_model_len: int) -> None:
    if shape.longest > max_model_len:
        raise ConfigError(
            f"workload {shape.name} has requests of up to {shape.longest} tokens, the engine takes {max_model_len}; "
            "scale it with --input-len and --output-len"
        )


class _Session:
    """One engine, the machine's limits, and what was measured so far."""

    def __init__(self, flags: BenchOfflineFlags, pipeline: Any, directory: Any) -> None:
        import torch

        from lightllm.bench.bounds import ModelWork
        from lightllm.bench.power import find_power_meter
        from lightllm.bench.probe import measure_machine
        from lightllm.device.device import find_device
        from lightllm.models.config_reader import ConfigReader
        from lightllm.models.registry import read_model_spec

        config = ConfigReader.load(directory)
        spec = read_model_spec(config, allow_unknown_keys=flags.model.allow_unknown_config_keys)
        dtype = getattr(torch, pipeline.facts["dtype"])
        self._flags, self._pipeline, self._name = flags, pipeline, directory.name
        self._work = ModelWork.of(spec, dtype)
        self._device, _ = find_device(flags.engine.device)
        self._machine: Machine = measure_machine(self._device, dtype)
        self._meter = find_power_meter(self._device)
        self._results: list[OfflineResult] = []
        self._steps: list[Step] = []

    def measure(self, shape: WorkloadShape) -> None:
        from lightllm.bench.offline import run_workload, warm_up

        warm_up(self._pipeline, shape)
        runs = []
        for seed in range(self._flags.repeats):
            result, steps = run_workload(self._pipeline, shape, self._work, self._machine, seed, self._meter)
            runs.append(result)
            self._steps += steps
        self._results.append(min(runs, key=lambda result: result.seconds))

    def report(self) -> None:
        from lightllm.bench.cost_fit import fit_step_cost
        from lightllm.bench.offline import COLUMNS
        from lightllm.bench.report import command_line, software, write_json
        from lightllm.bench.tables import format_table

        if self._flags.json != "-":
            print("\n".join(self._heading()))
            print(format_table(COLUMNS, [result.row() for result in self._results]))
        cost = fit_step_cost(self._steps)
        if self._flags.json is not None:
            content = {
                "command": command_line(),
                "model": self._name,
                "machine": {"device": self._device.name, **software(), **asdict(self._machine)},
                "engine": {r.name: [str(r.value), r.reason] for r in self._pipeline.resolved},
                "results": [result.to_dict() for result in self._results],
                "step_cost": None if cost is None else asdict(cost),
            }
            write_json(self._flags.json, content)
        if self._flags.cost_model is not None:  # last: what was measured is told, whatever becomes of the file
            self._save_cost(cost, self._flags.cost_model)

    def _heading(self) -> list[str]:
        machine, facts = self._machine, self._pipeline.facts
        return [
            f"{self._name}, {facts['dtype']}, {facts['device']}, KV pool of {facts['max_total_tokens']} tokens",
            f"measured here: {machine.bandwidth / 1e9:.1f} GB/s read, {machine.peak / 1e12:.3g} TFLOP/s",
            *(f"{result.workload}: {result.shape}" for result in self._results),
            "",
        ]

    def _save_cost(self, cost: StepCost | None, path: str) -> None:
        from lightllm.bench.cost_fit import FEWEST_STEPS, relative_error
        from lightllm.bench.report import show

        if cost is None:
            raise ConfigError(f"{len(self._steps)} steps are too few for a cost model, {FEWEST_STEPS} are needed")
        cost.save(path, model=self._name, machine=self._device.name)
        error = relative_error(cost, self._steps)
        show(f"\nstep-cost model from {len(self._steps)} steps, median error {error:.1%}: {path}", self._flags.json)
