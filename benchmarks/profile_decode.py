"""Where a decode step's time goes on a GPU: kernels by name, and how long the device idles between and within steps.

    python benchmarks/profile_decode.py benchmarks/models/llama3-8b --batch 64 [--input-len 512] [--json FILE]

Dummy weights, greedy. The idle share is one minus the union of kernel intervals over the span of the profiled steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lightllm.bench.pipeline import TokenPipeline
from lightllm.bench.workloads import WorkloadShape, make_requests
from lightllm.config.settings import ModelSettings, SchedulerSettings, Settings

WARM_STEPS = 24
PROFILED_STEPS = 48


class StepWindow:
    """Profiles a window of decode steps in the middle of a run, by counting the engine's launches."""

    def __init__(self, pipeline: TokenPipeline, batch: int) -> None:
        self._engine = pipeline._recorder
        self._launch = self._engine.launch
        self._batch = batch
        self._count = 0
        self.profile: profile | None = None
        self.wall = 0.0
        self._begun = 0.0
        self._engine.launch = self.launch  # type: ignore[method-assign]

    def launch(self, plan: Any) -> Any:
        if plan.num_tokens == plan.num_sequences == self._batch:
            self._count += 1
            if self._count == WARM_STEPS:
                torch.cuda.synchronize()
                self.profile = profile(activities=[ProfilerActivity.CUDA])
                self.profile.__enter__()
                self._begun = time.perf_counter()
            elif self._count == WARM_STEPS + PROFILED_STEPS and self.profile is not None:
                torch.cuda.synchronize()
                self.wall = time.perf_counter() - self._begun
                self.profile.__exit__(None, None, None)
        return self._launch(plan)


def read(window: StepWindow) -> dict[str, Any]:
    assert window.profile is not None, "too few decode steps ran"
    events = [e for e in window.profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((e.time_range.start, e.time_range.end) for e in events)
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    total = reached - spans[0][0]
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_name[event.name].append(event.time_range.end - event.time_range.start)
    kernels = [
        {"kernel": name[:90], "per_step": len(times) / PROFILED_STEPS, "us_per_step": sum(times) / PROFILED_STEPS}
        for name, times in by_name.items()
    ]
    kernels.sort(key=lambda k: -k["us_per_step"])
    return {
        "step_us": total / PROFILED_STEPS,
        "wall_us": window.wall / PROFILED_STEPS * 1e6,
        "idle_share": 1 - busy / total,
        "kernels": kernels,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    settings = Settings(
        model=ModelSettings(model=arguments.model, dummy=True, max_model_len=8192), scheduler=SchedulerSettings()
    )
    pipeline = TokenPipeline(settings, Path(arguments.model))
    results = {}
    for batch in arguments.batch or [1, 32]:
        length = (arguments.input_len, arguments.input_len)
        steps = WARM_STEPS + PROFILED_STEPS + 16
        shape = WorkloadShape("profile", batch, length, (steps, steps), 0.0, "output")
        window = StepWindow(pipeline, batch)
        pipeline.run(make_requests(shape, pipeline.facts["vocab_size"], seed=1))
        pipeline._recorder.launch = window._launch  # type: ignore[method-assign]
        result = results[batch] = read(window)
        print(f"\nbatch {batch}: device {result['step_us']:.0f} us a step, wall {result['wall_us']:.0f} us, ", end="")
        print(f"idle {result['idle_share']:.1%}")
        for kernel in result["kernels"][:22]:
            print(f"  {kernel['us_per_step']:9.1f} us  x{kernel['per_step']:6.1f}  {kernel['kernel']}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
