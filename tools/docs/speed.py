"""docs/benchmarks.md: how speed is measured, and the last result of each comparison, from benchmarks/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markdown import GENERATED, code, table

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"

METHOD = """\
# Benchmarks

Every figure stands beside its bound and the command that made it. To measure your own machine:

    lightllm bench offline MODEL                                   five workloads on an engine by itself
    lightllm bench offline benchmarks/models/llama3-8b --dummy     the same for a bare config.json, random weights
    lightllm bench serve --url http://127.0.0.1:8000               what the clients of a running server see
    lightllm bench kernels MODEL                                   each GPU kernel at the model's sizes
    lightllm bench kernels MODEL --tune                            measure which kernels the engine shall use for it
    python benchmarks/startup.py MODEL                             from starting a process to the first token
    python benchmarks/cpu_vs_transformers.py                       beside Transformers, on a CPU

## Workloads

Prompts are uniformly random token ids without a shared prefix, decoding is greedy unless said, the end of sequence is
ignored and nothing is turned into text. `--requests`, `--input-len` and `--output-len` scale them down.

| workload | requests | tokens in | tokens out | counted |
| --- | --- | --- | --- | --- |
| `single` | 1 | 128 | 256 | output tokens per second |
| `batch32` | 32 | 512 | 256 | output |
| `prefill` | 32 | 2048 | 1 | input |
| `ragged` | 256 | 100-1024 | 100-1024, temperature 0.6 | output |
| `throughput` | 512 | 1024 | 256 | output |

`benchmarks/models/` holds the configs of the four models that figures are quoted on.

## Definitions

* **TTFT**: request sent to first token. **ITL**: gap between two streamed chunks. **TPOT**: (latency - TTFT) /
  (output tokens - 1). **Largest gap** (MTPOT): the longest ITL of a request.
* **Goodput**: requests, or their output tokens, per second of requests that met every limit given.
* **Bound**: for each step the larger of two times, those that its bytes need at the measured read bandwidth and its
  operations at the measured rate of matrix products; summed over the steps that ran. Bytes are every weight once and
  the KV of every running token; operations are the matrix products and attention. What only tokens with logits need of
  the last block counts for these alone.
* **MBU**: bytes that decode steps must read / their time / measured bandwidth. **MFU**: operations / time / measured
  rate. Both limits are measured in the same run.
* **Power**, **clock**: means over a run of at least a second, by the driver's energy counter. At its power limit a GPU
  lowers its clock, and then what counts is the energy that the work needs, which differs from card to card.
"""

CPU = """
## Beside Transformers on a CPU

A Qwen3-0.6B-shaped model in float32 with random weights, greedy. lightllm runs at most 8 requests at a time;
Transformers' `generate` takes them in batches of 8, left-padded, until the longest of a batch is done, and only the
tokens that were asked for count. Both are loaded in one process, their runs alternate, the fastest of each counts.
"""

GPU = """
## On a GPU

Random weights of the real shapes, graphs captured before the clock starts (a server does that while it is idle), at the
revision named.
"""

OTHERS = """
### Other cards, and before

Tokens per second of the same workloads on other cards of the kind, at earlier revisions, oldest first. Where the power
limit rules, as it does for prompts and large batches of 8B, cards differ by up to seven per cent; so do hosts, which
may be why `single` of 0.6B differs by more. Before revision 2ac0c64 all workloads drew their prompts from one stream of
random numbers: 6% of the tokens of `prefill` and 7% of those of `throughput` were then in the prefix cache, left there
by the workloads before, so that these figures are too good by about as much. The files are in
`benchmarks/results/gpu/runs/`.
"""

STARTS = """
### Start

From starting a process to its first token, random weights made on the device: the engine by itself, and `lightllm
serve` until the first token of a streamed completion arrives over HTTP. The cache is one of compiled kernels and of
Python's bytecode. Made by
`python benchmarks/startup.py benchmarks/models/MODEL` at revision {revision}.
"""

IDLE = """
### Between decode steps

The share of the time in which no kernel runs, within and between steps, measured with torch's profiler.
"""

ERRORS = """
### bfloat16 beside float32

Log-probabilities of the demo model at every position of 24 random prompts, over the whole vocabulary, against the CPU
engine's float32, beside Transformers' own bfloat16 on the same GPU. Random prompts are far from what the model knows,
so that many tokens are nearly tied. Made by `python benchmarks/gpu_correctness.py`.
"""

WORKLOADS = ("single", "batch32", "prefill", "ragged", "throughput")
PHASES = ("imports", "engine", "first token", "total")


def page() -> str:
    """The whole page."""
    return GENERATED + METHOD + _gpu_section() + _cpu_section()


def _gpu_section() -> str:
    """The last committed run of each model on a GPU, how it starts, and how close its numbers are."""
    offline = [_read(path) for path in sorted(RESULTS.glob("gpu/offline-*.json"))]
    if not offline:
        return ""
    parts = [GPU]
    for report in offline:
        machine = report["machine"]
        limits = f"{machine['bandwidth'] / 1e12:.2f} TB/s read, {machine['peak'] / 1e12:.0f} TFLOP/s"
        rows = [
            [
                f"{result['workload']}: {result['shape']}",
                f"{result['tokens_per_second']:,.0f} {result['counted']}",
                f"{result['bound_tokens_per_second']:,.0f}",
                f"{result['share_of_bound']:.0%}",
                f"{result['ttft']['p50'] * 1e3:.1f}",
                f"{result['decode_step_seconds']['p50'] * 1e3:.2f}" if result["decode_step_seconds"]["count"] else "",
                *_power(result.get("power")),
            ]
            for result in report["results"]
        ]
        times, power = ("TTFT p50, ms", "decode step p50, ms"), ("power, W", "clock, MHz")
        head = ("workload", "tokens/s", "bound", "share", *times, *power)
        made = f"{machine['device']} ({limits} measured in the run), {report['engine']['dtype'][0]}"
        made += f", revision {report.get('revision', 'unknown')}."
        parts += [f"### {report['model']}\n", table(head, rows), f"{made} Made by {code(report['command'])}.\n"]
    parts += _others() + _starts() + _idle() + _errors()
    return "\n".join(parts)


def _power(power: dict[str, float] | None) -> tuple[str, str]:
    """What a run drew, and its clock."""
    return ("", "") if power is None else (f"{power['watts']:.0f}", f"{power['clock']:,.0f}")


def _others() -> list[str]:
    """Runs that came before the last."""
    reports = [_read(path) for path in RESULTS.glob("gpu/runs/offline-*.json")]
    reports.sort(key=lambda report: (report["model"], report.get("date", "")))
    rows = []
    for report in reports:
        speeds = {result["workload"]: f"{result['tokens_per_second']:,.0f}" for result in report["results"]}
        read = f"{report['machine']['bandwidth'] / 1e12:.2f}"
        rows.append([report["model"], report["revision"], *(speeds.get(name, "") for name in WORKLOADS), read])
    head = ("model", "revision", *WORKLOADS, "read, TB/s")
    return [OTHERS, table(head, rows)] if rows else []


def _starts() -> list[str]:
    """Seconds from starting a process to the first token."""
    reports = {path.stem.removeprefix("startup-"): _read(path) for path in sorted(RESULTS.glob("gpu/startup-*.json"))}
    rows = [
        [model, name, *(f"{times[phase]:.1f}" if phase in times else "" for phase in PHASES)]
        for model, report in reports.items()
        for name, times in report["runs"].items()
    ]
    head = ("model", "what, and compiled kernels", "imports", "engine", "first token", "total, s")
    revisions = ", ".join(sorted({report.get("revision", "unknown") for report in reports.values()}))
    return [STARTS.replace("{revision}", revisions), table(head, rows)] if rows else []


def _idle() -> list[str]:
    """How long the device waits while it decodes."""
    rows = [
        [path.stem.removeprefix("profile-"), batch, f"{found['step_us'] / 1e3:.2f}", f"{found['idle_share']:.1%}", made]
        for path in sorted(RESULTS.glob("gpu/profile-*.json"))
        for report in [_read(path)]
        for made in [f"{code(report['command'])}, revision {report['revision']}"]
        for batch, found in report["batches"].items()
    ]
    return [IDLE, table(("model", "batch", "step, ms", "idle", "made by"), rows)] if rows else []


def _errors() -> list[str]:
    """How far the GPU engine is from the CPU engine."""
    path = RESULTS / "gpu" / "correctness-demo.json"
    if not path.is_file():
        return []
    rows = [
        [
            run["run"],
            f"{run['mean_error']:.3f}",
            f"{run['max_error']:.2f}",
            f"{run['same_likeliest']:.1%}",
            run["same_greedy"],
        ]
        for run in _read(path)
    ]
    head = ("run", "mean error", "largest error", "same likeliest token", "same greedy ids")
    return [ERRORS, table(head, rows)]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _cpu_section() -> str:
    path = RESULTS / "cpu_vs_transformers.json"
    if not path.is_file():
        return ""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    machine = result["machine"]
    rows = [
        [
            f"{w['workload']}: {w['shape']}",
            f"{w['lightllm_tokens_per_second']:.1f}",
            f"{w['transformers_tokens_per_second']:.1f}",
            f"{w['ratio']:.2f}",
        ]
        for w in result["workloads"]
    ]
    share = f"{result['share_of_bandwidth_at_batch_1']:.0%} of the {machine['bandwidth'] / 1e9:.1f} GB/s measured"
    where = f"{machine['cores']} cores of {machine['device']}, torch {machine['torch']}"
    return "\n".join(
        [
            CPU,
            table(("workload", "lightllm, output tok/s", "Transformers, output tok/s", "ratio"), rows),
            f"At batch 1 decoding reads {share}.",
            f"{where}, Transformers {machine['transformers']}; layers: {result['layers']}.",
            f"Made by {code(result['command'])};",
            "every run is in `benchmarks/results/cpu_vs_transformers.json`.\n",
        ]
    )
