"""Tables, JSON and pictures of simulation results: the mean over seeds and its spread."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lightllm.config.checks import writing
from lightllm.errors import ConfigError
from lightllm.simulate.record import Summary

_COLUMNS = (
    ("goodput", "goodput tok/s", "{:.0f}"),
    ("sla_share", "SLA %", "{:.1%}"),
    ("evicted_share", "evicted %", "{:.1%}"),
    ("evictions_per_finished", "events %", "{:.1%}"),
    ("recomputed_share", "recomputed %", "{:.1%}"),
    ("memory_mean", "memory %", "{:.1%}"),
    ("memory_peak", "peak %", "{:.1%}"),
    ("ttft_p50", "TTFT p50", "{:.2f}"),
    ("ttft_p99", "p99", "{:.2f}"),
    ("gap_p50", "gap p50", "{:.2f}"),
    ("gap_p99", "p99", "{:.2f}"),
    ("num_finished", "finished", "{:.0f}"),
    ("num_gave_up", "gave up", "{:.0f}"),
    ("num_refused", "refused", "{:.0f}"),
    ("scheduler_us_p50", "host us", "{:.0f}"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One variant on one workload, over several seeds."""

    workload: str
    variant: str
    summaries: tuple[Summary, ...]

    def mean(self, name: str) -> float:
        return float(np.mean([getattr(summary, name) for summary in self.summaries]))

    def spread(self, name: str) -> float:
        """Standard deviation over seeds; zero for one."""
        values = [getattr(summary, name) for summary in self.summaries]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        names = [field.name for field in fields(Summary)]
        return {
            "workload": self.workload,
            "variant": self.variant,
            "mean": {name: _rounded(self.mean(name)) for name in names},
            "spread": {name: _rounded(self.spread(name)) for name in names},
            "seeds": [{k: _rounded(v) for k, v in asdict(summary).items()} for summary in self.summaries],
        }


def table(results: Sequence[Result]) -> str:
    """A Markdown table; the spread over seeds stands behind the goodput."""
    header = ["workload", "variant", *(title for _, title, _ in _COLUMNS)]
    lines = [" | ".join(header), " | ".join(["---", "---", *("---:" for _ in _COLUMNS)])]
    for result in results:
        cells = [form.format(result.mean(name)) for name, _, form in _COLUMNS]
        if len(result.summaries) > 1:
            cells[0] += f" ± {result.spread('goodput'):.0f}"
        lines.append(" | ".join([result.workload, result.variant, *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def write_json(path: str | Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """All numbers of all seeds, and how they were made; null for what no request was there to measure. Raises
    ConfigError when the file cannot be written."""
    content = {"about": dict(about), "results": [result.to_dict() for result in results]}
    with writing(path, "json"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_plot(path: str | Path, results: Sequence[Result]) -> None:
    """Goodput and SLA share of every variant, a group of bars per workload (PNG). Raises ConfigError without matplotlib
    and when the file cannot be written."""
    try:
        matplotlib: Any = import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ConfigError("plot: matplotlib is not installed (pip install matplotlib)", param="plot") from error
    workloads = list(dict.fromkeys(result.workload for result in results))
    variants = list(dict.fromkeys(result.variant for result in results))
    figure, axes = pyplot.subplots(1, 2, figsize=(5 + 2.2 * len(workloads), 4.5))
    width = 0.8 / len(variants)
    panels = (("goodput", "goodput, tokens per second"), ("sla_share", "share of requests within targets"))
    for axis, (name, title) in zip(axes, panels, strict=True):
        for place, variant in enumerate(variants):
            chosen = [r for r in results if r.variant == variant]
            at = [workloads.index(r.workload) + (place - (len(variants) - 1) / 2) * width for r in chosen]
            errors = [r.spread(name) for r in chosen]
            axis.bar(at, [r.mean(name) for r in chosen], width, yerr=errors, label=variant)
        axis.set_xticks(range(len(workloads)), workloads)
        axis.set_title(title)
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    try:
        with writing(path, "plot"):
            figure.savefig(path, dpi=120, format="png")
    finally:
        pyplot.close(figure)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
