"""lightllm beside Transformers' own `generate` on a CPU, in one run, alternating, on a Qwen3-0.6B-shaped model.

    python benchmarks/cpu_vs_transformers.py                 the whole comparison, under ten minutes on two cores
    python benchmarks/cpu_vs_transformers.py --layers 4      a quick look

Two workloads in float32, greedy, random weights, random token ids, end of sequence ignored:

batch 1   one request, 128 tokens in, 64 out
ragged    32 requests, 16-256 tokens in, 16-128 out. lightllm runs 8 at a time; Transformers takes them in batches of
          8 in the order they come, left-padded, until the longest of a batch is done. Only the tokens that a request
          asked for count.

Both models stay loaded; their runs alternate, and the fastest of each counts, so that neither gets the quieter
machine. The weights are drawn alike but are not the same: speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from lightllm.bench.bounds import ModelWork
from lightllm.bench.pipeline import Run, TokenPipeline
from lightllm.bench.probe import measure_machine
from lightllm.bench.report import command_line, software, write_json
from lightllm.bench.tables import format_table
from lightllm.bench.workloads import TokenRequest, WorkloadShape, make_requests, total_tokens
from lightllm.config.settings import EngineSettings, ModelSettings, SchedulerSettings, Settings
from lightllm.device.device import find_device
from lightllm.models.config_reader import ConfigReader
from lightllm.models.registry import read_model_spec

HERE = Path(__file__).parent
AT_A_TIME = 8
SINGLE = WorkloadShape("batch 1", 1, (128, 128), (64, 64))
RAGGED = WorkloadShape("ragged", 32, (16, 256), (16, 128))


def main() -> None:
    """Measure, print, write."""
    options = read_options()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_config(HERE / "models" / "qwen3-0.6b", Path(scratch), options.layers)
        device, _ = find_device("cpu")
        machine = measure_machine(device, torch.float32)
        work = ModelWork.of(read_model_spec(ConfigReader.load(directory)), torch.float32)
        model = make_transformers_model(directory)
        pipeline = make_pipeline(directory)
    vocab_size = pipeline.facts["vocab_size"]
    single = compare(SINGLE, pipeline, model, vocab_size, options.repeats)
    read = share_of_bandwidth(single.pop("run"), work, machine.bandwidth)
    ragged = compare(RAGGED, pipeline, model, vocab_size, options.ragged_repeats)
    ragged.pop("run")
    pipeline.close()
    print(table([single, ragged]))
    print(f"\nmemory read here: {machine.bandwidth / 1e9:.1f} GB/s; reached by lightllm at batch 1: {read:.0%}")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, **software()}
    content = {
        "command": command_line(),
        "layers": options.layers or "all",
        "machine": {"device": device.name, **versions, **asdict(machine)},
        "share_of_bandwidth_at_batch_1": read,
        "workloads": [single, ragged],
    }
    if options.json is not None:
        write_json(options.json, content)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="this many layers instead of all 28")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side at batch 1")
    parser.add_argument("--ragged-repeats", type=int, default=1, help="runs of each side of the ragged load")
    default = HERE / "results" / "cpu_vs_transformers.json"
    parser.add_argument("--json", default=str(default), help="file for all figures; - for standard output")
    return parser.parse_args()


def write_config(source: Path, target: Path, layers: int | None) -> Path:
    """A copy of the config, with fewer layers if asked."""
    values = json.loads((source / "config.json").read_text())
    if layers is not None:
        values |= {"num_hidden_layers": layers, "max_window_layers": layers}
    (target / "config.json").write_text(json.dumps(values))
    return target


def make_transformers_model(directory: Path) -> Any:
    """Transformers' own model with random weights in float32; its attention is torch's fused one."""
    config = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()


def make_pipeline(directory: Path) -> TokenPipeline:
    """lightllm's engine loop, 8 requests at a time, nothing reused between runs."""
    settings = Settings(
        ModelSettings(dummy=True, dtype="float32", max_model_len=1024),
        EngineSettings(device="cpu", max_total_tokens=8192),
        SchedulerSettings(max_running=AT_A_TIME, prefix_cache=False),
    )
    return TokenPipeline(settings, directory)


def compare(shape: WorkloadShape, pipeline: TokenPipeline, model: Any, vocab_size: int, repeats: int) -> dict[str, Any]:
    """Both sides in turn, after a short run of each; the fastest run of each counts."""
    requests = make_requests(shape, vocab_size)
    warm = make_requests(shape.scaled(2, (16, 16), (2, 2)), vocab_size, seed=1)
    pipeline.run(warm)
    run_transformers(model, warm)
    ours: list[Run] = []
    theirs: list[float] = []
    for _ in range(repeats):
        theirs.append(timed(lambda: run_transformers(model, requests)))
        ours.append(pipeline.run(requests))
    best = min(ours, key=lambda run: run.seconds)
    wanted = total_tokens(requests, "output")
    return {
        "workload": shape.name,
        "shape": str(shape),
        "output_tokens": wanted,
        "lightllm_tokens_per_second": wanted / best.seconds,
        "transformers_tokens_per_second": wanted / min(theirs),
        "ratio": min(theirs) / best.seconds,
        "lightllm_seconds": [run.seconds for run in ours],
        "transformers_seconds": theirs,
        "run": best,
    }


@torch.inference_mode()
def run_transformers(model: Any, requests: Sequence[TokenRequest]) -> None:
    """Batches of 8 in order, left-padded, each until its longest output is done."""
    for first in range(0, len(requests), AT_A_TIME):
        batch = requests[first : first + AT_A_TIME]
        width = max(len(request.prompt) for request in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt) :] = torch.from_numpy(request.prompt).long()
            mask[row, width - len(request.prompt) :] = 1
        longest = max(request.output_len for request in batch)
        limits = {"max_new_tokens": longest, "min_new_tokens": longest, "do_sample": False}
        model.generate(ids, attention_mask=mask, eos_token_id=None, pad_token_id=0, **limits)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def share_of_bandwidth(run: Run, work: ModelWork, bandwidth: float) -> float:
    """Bytes that decode steps must read, over the time from one token to the next and the measured bandwidth."""
    decodes = [step for step in run.steps if step.only_decodes]
    (generated,) = run.generated
    between = (generated.times[-1] - generated.times[0]) / (len(generated.times) - 1)
    bytes_per_step = sum(work.bytes_of(step.work) for step in decodes) / len(decodes)
    return bytes_per_step / between / bandwidth


def table(results: Sequence[dict[str, Any]]) -> str:
    headers = ("workload", "lightllm tok/s", "Transformers tok/s", "ratio")
    rows = [
        [
            f"{r['workload']}: {r['shape']}",
            f"{r['lightllm_tokens_per_second']:.1f}",
            f"{r['transformers_tokens_per_second']:.1f}",
            f"{r['ratio']:.2f}",
        ]
        for r in results
    ]
    return format_table(headers, rows)


if __name__ == "__main__":
    main()
