# ruff: noqa: B023
"""Time every kernel on this GPU beside the bound its bytes or operations set, and beside torch.

    python benchmarks/kernels.py [--only norm,rotary,decode,prefill,linear,step] [--json FILE] [--tune FILE]

Each time is the median over replays of a CUDA graph that holds many launches on rotating inputs, larger together than
the L2 cache. `--tune FILE` measures the candidates of the linear kernels and writes the table of the best.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from lightllm.kernels.ops.contracts import AttentionParams, HeadNorms, HeadShape, SequenceLayout
from lightllm.kernels.triton import activation, linear_choice, linear_op, norm, rotary
from lightllm.kernels.triton.attention_backend import Tiling, TritonAttention
from lightllm.kernels.triton.linear_choice import Tile, Vector

DTYPE = torch.bfloat16
WARM_UP = 0.02
"""Seconds of replays before the first is timed: a device that was idle runs some percent slower at first."""
CACHE_BYTES = 256 << 20
"""Rotating inputs together exceed this, several times the L2 cache."""


@dataclass(frozen=True)
class Model:
    """A decoder's shape: hidden, feed-forward, vocabulary, layers, heads."""

    name: str
    hidden: int
    ffn: int
    vocab: int
    layers: int
    heads: HeadShape
    head_norms: bool

    def weights(self) -> dict[str, tuple[int, int]]:
        q, kv = self.heads.num_q_heads * self.heads.head_dim, self.heads.num_kv_heads * self.heads.head_dim
        return {
            "qkv": (q + 2 * kv, self.hidden),
            "output": (self.hidden, q),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
            "head": (self.vocab, self.hidden),
        }


MODELS = (
    Model("Llama-3-8B", 4096, 14336, 128256, 32, HeadShape(32, 8, 128, 128), False),
    Model("Qwen3-0.6B", 1024, 3072, 151936, 28, HeadShape(16, 8, 128, 128), True),
)


@dataclass
class Report:
    """Rows printed as they come and kept for the JSON; `limits` are the machine's own, measured first."""

    limits: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(
        self, kernel: str, case: str, seconds: float, moved: float = 0, operations: float = 0, **more: object
    ) -> None:
        row: dict[str, object] = {"kernel": kernel, "case": case, "us": round(seconds * 1e6, 2), **more}
        text = f"{kernel:26s} {case:44s} {seconds * 1e6:9.1f} us"
        if moved:
            row["tb_per_s"] = round(moved / seconds / 1e12, 3)
            row["share"] = round(moved / seconds / self.limits["bytes"], 3)
            text += f"  {row['tb_per_s']:6.2f} TB/s {row['share']:6.1%}"
        if operations:
            row["tflops"] = round(operations / seconds / 1e12, 1)
            row["share"] = round(operations / seconds / self.limits["flops"], 3)
            text += f"  {row['tflops']:6.1f} TFLOP/s {row['share']:6.1%}"
        if more:
            text += "  " + " ".join(f"{k}={v}" for k, v in more.items())
        print(text, flush=True)
        self.rows.append(row)


def timed(launches: list[Callable[[], object]], least: float = 0.004) -> float:
    """Median seconds of one launch, from replays of a graph that holds all of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for launch in launches[:2]:
            launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    started = time.perf_counter()
    while time.perf_counter() - started < WARM_UP:
        graph.replay()
        torch.cuda.synchronize()
    times: list[float] = []
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    while len(times) < 5 or (sum(times) < least and len(times) < 40):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2] / len(launches)


def timed_eagerly(call: Callable[[], object]) -> float:
    """The same for what cannot be captured: ten calls in a row."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    begin.record()
    for _ in range(10):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e4


def copies_of(size: int) -> int:
    """How many inputs of this many bytes to rotate through."""
    return max(2, min(64, math.ceil(CACHE_BYTES / size)))


def note_compilations(seconds: dict[str, list[float]]) -> None:
    """From now on, write down what each kernel's compilations take, those found in the cache on disk left out."""
    import triton

    def note(*, src, times, cache_hit, **_: object) -> None:
        if not cache_hit:
            seconds.setdefault(src.fn.__name__, []).append(round(times.total / 1e6, 2))

    triton.knobs.compilation.listener = note


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device="cuda", dtype=DTYPE)) * scale


def measure_limits(report: Report) -> None:
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    report.limits["bytes"] = 2 * source.numel() / timed([lambda: target.copy_(source)] * 3)
    wide = source.view(torch.int64)
    read = source.numel() / timed([lambda: torch.sum(wide)] * 3)
    a, b = random(8192, 8192), random(8192, 8192)
    report.limits["flops"] = 2 * 8192**3 / timed([lambda: a @ b] * 4)
    print(
        f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}: copy {report.limits['bytes'] / 1e12:.2f} TB/s, "
        f"sum reads {read / 1e12:.2f} TB/s, product {report.limits['flops'] / 1e12:.0f} TFLOP/s"
    )
    report.limits["bytes"] = max(read, report.limits["bytes"])


def bench_norm(report: Report) -> None:
    for model in MODELS:
        weight = random(model.hidden)
        for tokens in (1, 64, 8192):
            size = tokens * model.hidden * 2
            n = copies_of(4 * size)
            xs, residuals = (
                [random(tokens, model.hidden) for _ in range(n)],
                [random(tokens, model.hidden) for _ in range(n)],
            )
            case = f"{model.name} {tokens} tokens"
            calls = [lambda x=x, r=r: norm.add_rms_norm(x, r, weight, 1e-5) for x, r in zip(xs, residuals, strict=True)]
            report.add("add_rms_norm", case, timed(calls), 4 * size)
            if tokens > 1:
                calls = [lambda x=x: norm.rms_norm(x, weight, 1e-5) for x in xs]
                report.add("rms_norm", case, timed(calls), 2 * size)
            gates = [random(tokens, 2 * model.ffn) for _ in range(max(2, n // 4))]
            calls = [lambda g=g: activation.gated_activation(g, "silu") for g in gates]
            report.add("gated_activation", case, timed(calls), 3 * tokens * model.ffn * 2)


def bench_rotary(report: Report) -> None:
    for model in MODELS:
        heads = model.heads
        num_heads = heads.num_q_heads + 2 * heads.num_kv_heads
        norms = HeadNorms(random(128), random(128), 1e-6) if model.head_norms else None
        caches = [random(20000, heads.num_kv_heads, 128) for _ in "kv"]
        for tokens in (1, 64, 8192):
            angles = torch.randn(tokens, 64, device="cuda")
            cos, sin, slots = angles.cos(), angles.sin(), torch.randperm(20000, device="cuda")[:tokens]
            size = tokens * num_heads * 128 * 2
            inputs = [random(tokens, num_heads * 128) for _ in range(copies_of(2 * size))]
            calls = [lambda x=x: rotary.rotary_store(x, heads, cos, sin, norms, *caches, slots) for x in inputs]
            report.add("rotary_store", f"{model.name} {tokens} tokens", timed(calls), 2 * size)


def attention_case(heads: HeadShape, starts: list[int], lens: list[int], contiguous: bool = False):
    """Layout, queries, and pools with every key of the step at a random slot."""
    layout = SequenceLayout(*(np.array(a, np.int32) for a in (range(len(starts)), starts, lens)))
    total, longest = int(layout.kv_lens.sum()), int(layout.kv_lens.max())
    slots = torch.arange(total) if contiguous else torch.randperm(total)
    table = torch.zeros(len(starts), longest, dtype=torch.int32)
    first = 0
    for row, length in enumerate(layout.kv_lens.tolist()):
        table[row, :length] = slots[first : first + length]
        first += length
    q = random(int(layout.lens.sum()), heads.num_q_heads, heads.head_dim)
    caches = [random(total + 1, heads.num_kv_heads, heads.head_dim) for _ in "kv"]
    return layout, q, caches, table.cuda()


def check_attention(q, caches, table, layout, out) -> float:
    """Largest difference to a float32 product for a few sequences."""
    worst = 0.0
    firsts = np.cumsum(layout.lens) - layout.lens
    for s in (0, len(layout.lens) - 1):
        length, count = int(layout.kv_lens[s]), int(layout.lens[s])
        slots = table[layout.rows[s], :length].long()
        group = q.shape[1] // caches[0].shape[1]
        k, v = (c[slots].float().repeat_interleave(group, 1).transpose(0, 1) for c in caches)
        queries = q[firsts[s] : firsts[s] + count].float().transpose(0, 1)
        scores = queries @ k.transpose(1, 2) * q.shape[2] ** -0.5
        seen = torch.arange(length, device="cuda") <= torch.arange(length - count, length, device="cuda")[:, None]
        expected = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1)
        worst = max(worst, float((out[firsts[s] : firsts[s] + count].float() - expected).abs().max()))
    return worst


def bench_decode(report: Report, sweep: bool) -> None:
    params = AttentionParams(scale=128**-0.5)
    rng = np.random.default_rng(0)
    ragged = rng.integers(100, 1500, 256).tolist()
    cases = {
        "1 x 256": [255],
        "1 x 8k": [8191],
        "8 x 4k": [4095] * 8,
        "32 x 1k": [1023] * 32,
        "64 x 2k": [2047] * 64,
        "8 x 32k": [32767] * 8,
        "256 x 100-1500": ragged,
    }
    tilings: list[Tiling | None] = [None]
    if sweep:
        tilings += [Tiling(16, *t) for t in SWEEP_DECODE]
    for model in MODELS:
        heads = model.heads
        for name, starts in cases.items():
            layout, q, caches, table = attention_case(heads, starts, [1] * len(starts))
            size = int(layout.kv_lens.sum()) * heads.num_kv_heads * heads.head_dim * 4
            sets = [caches] + [[c.clone() for c in caches] for _ in range(copies_of(size) - 1)]
            for tiling in tilings if model is MODELS[0] else tilings[:1]:
                backend = TritonAttention(heads, torch.device("cuda"), *([lambda *_, t=tiling: t] if tiling else []))
                buffers = backend.make_buffers(len(starts), len(starts), table)
                backend.plan_into(buffers, layout)
                out = backend.run(q, *caches, buffers.plan, params)
                error = check_attention(q, caches, table, layout, out)
                calls = [lambda s=s: backend.run(q, *s, buffers.plan, params) for s in sets]
                items = int((buffers.plan.launches[0].items.view(-1, 8)[:, 2] > 0).sum())
                label = (
                    ""
                    if tiling is None
                    else f" {tiling.block_n},{tiling.num_warps},{tiling.num_stages},{tiling.occupancy}"
                )
                report.add(
                    "attention decode",
                    f"{model.name} {name}{label}",
                    timed(calls),
                    size,
                    error=round(error, 4),
                    items=items,
                )
            del sets, caches


SWEEP_DECODE = [(64, 4, 3, 4), (64, 4, 5, 3), (128, 4, 5, 1)]
SWEEP_PREFILL = [(128, 64, 8, 5, 1), (256, 64, 8, 5, 1)]


def bench_prefill(report: Report, sweep: bool) -> None:
    params = AttentionParams(scale=128**-0.5)
    cases = {
        "16 x 2048": ([0] * 16, [2048] * 16),
        "4 x 2048 after 6144": ([6144] * 4, [2048] * 4),
        "1 x 256 after 16k": ([16384], [256]),
        "64 x 128": ([0] * 64, [128] * 64),
        "48 decodes at 1k + 512": ([1023] * 48 + [0], [1] * 48 + [512]),
    }
    for model in MODELS:
        heads = model.heads
        for name, (starts, lens) in cases.items():
            layout, q, caches, table = attention_case(heads, starts, lens)
            pairs = float((layout.lens.astype(np.float64) * (layout.starts + (layout.lens + 1) / 2)).sum())
            operations = 4 * pairs * heads.num_q_heads * heads.head_dim
            tilings: list[Tiling | None] = [None]
            if sweep and name.startswith(("16", "4 x")) and model is MODELS[0]:
                tilings += [Tiling(*t) for t in SWEEP_PREFILL]
            for tiling in tilings:
                backend = TritonAttention(heads, torch.device("cuda"), *([lambda *_, t=tiling: t] if tiling else []))
                try:
                    plan = backend.plan(layout, table)
                    out = backend.run(q, *caches, plan, params)
                    error = check_attention(q, caches, table, layout, out)
                    seconds = timed([lambda: backend.run(q, *caches, plan, params)] * 3)
                except Exception as problem:
                    print(f"attention prefill {name} {tiling}: {type(problem).__name__}: {str(problem)[:200]}")
                    continue
                label = "" if tiling is None else " " + ",".join(str(v) for v in asdict(tiling).values())
                case = f"{model.name} {name}{label}"
                report.add("attention prefill", case, seconds, operations=operations, error=round(error, 4))
            if starts[0] == 0 and len(set(lens)) == 1:
                bench_torch_prefill(report, f"{model.name} {name}", layout, q, caches, table, operations)


def bench_torch_prefill(report: Report, case: str, layout, q, caches, table, operations: float) -> None:
    """What torch offers for prompts without a prefix, keys and values gathered beforehand or counted in."""
    group = q.shape[1] // caches[0].shape[1]
    longest = int(layout.lens.max())
    firsts = torch.from_numpy(np.concatenate([[0], np.cumsum(layout.lens)]).astype(np.int32)).cuda()
    slots = torch.cat([table[r, :n] for r, n in zip(layout.rows.tolist(), layout.kv_lens.tolist(), strict=True)]).long()
    k, v = (c[slots] for c in caches)

    def cudnn(k=k, v=v):
        return torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, firsts, firsts, longest, longest, False, 0.0, True, False, scale=q.shape[2] ** -0.5
        )[0]

    def flash(k=k, v=v):
        return torch.ops.aten._flash_attention_forward(
            q, k, v, firsts, firsts, longest, longest, 0.0, True, False, scale=q.shape[2] ** -0.5
        )[0]

    def padded():
        batch = [t.view(len(layout.lens), longest, -1, q.shape[2]).transpose(1, 2) for t in (q, k, v)]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=group > 1)

    variants = {
        "cudnn varlen": cudnn,
        "flash varlen": flash,
        "cudnn dense": padded,
    }
    for name, call in variants.items():
        try:
            begin = time.perf_counter()
            call()
            torch.cuda.synchronize()
            first = time.perf_counter() - begin
            seconds = timed_eagerly(call) if "varlen" in name else timed([call] * 3)
            report.add(name, case, seconds, operations=operations, first_call_s=round(first, 3))
        except Exception as problem:
            print(f"{name} {case}: {type(problem).__name__}: {str(problem)[:300]}")


def candidates(tokens: int) -> list[Vector | Tile]:
    found: list[Vector | Tile] = []
    if tokens <= 4:
        blocks = [(512, 2), (1024, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 8)]
        found += [
            Vector(rows, k, w, ahead)
            for rows in (1, 2, 4)
            for k, w in blocks
            for ahead in ((0, 1056, 2112) if tokens == 1 else (0, 1056))
            if rows * tokens * k // w <= (2048 if tokens > 1 else 4096)
        ]
    tiles = [(64, 64, 6), (64, 128, 3), (64, 128, 5), (64, 256, 3), (128, 64, 4), (128, 128, 3)]
    if tokens >= 2:
        found += [Tile(n, k, split, stages, 4) for n, k, stages in tiles for split in (1, 2, 4)]
    return found


def tune_linear(report: Report, workers: int) -> dict[str, dict[str, list[str | int]]]:
    """Time every candidate for every shape; the best beside cuBLAS."""
    begin = time.perf_counter()
    run = [sys.executable, __file__, "--compile"]
    started = [subprocess.Popen([*run, f"{part}/{workers}"]) for part in range(workers)]
    for process in started:
        process.wait()
    print(f"compiled the candidates in {time.perf_counter() - begin:.1f} s by {workers} processes")
    workspace = linear_op.SplitWorkspace(torch.device("cuda"))
    table: dict[str, dict[str, list[str | int]]] = {}
    for model in MODELS:
        for name, (num_rows, size) in model.weights().items():
            weights = [random(num_rows, size, scale=size**-0.5) for _ in range(copies_of(num_rows * size * 2))]
            steps: dict[str, list[str | int]] = {}
            for tokens in (1, 2, 4, 8, 16, 32, 64):
                x = random(tokens, size)
                moved = num_rows * size * 2
                case = f"{model.name} {name} {num_rows}x{size} M={tokens}"
                repeat = max(1, 16 // len(weights))
                vendor = timed([lambda w=w: torch.nn.functional.linear(x, w) for w in weights] * repeat)
                best: tuple[float, Vector | Tile | None] = (vendor, None)
                expected = torch.nn.functional.linear(x, weights[0]).float()
                tried: dict[str, float] = {}
                for choice in candidates(tokens):
                    try:
                        out = multiply(x, weights[0], choice, workspace)
                        assert (out.float() - expected).abs().max() < 0.1, (
                            f"wrong: {(out.float() - expected).abs().max()}"
                        )
                        seconds = timed([lambda w=w: multiply(x, w, choice, workspace) for w in weights] * repeat)
                    except Exception as problem:
                        print(f"{case} {choice}: {type(problem).__name__}: {str(problem)[:160]}")
                        continue
                    tried["-".join(map(str, linear_choice.write_choice(choice)))] = round(seconds * 1e6, 2)
                    if seconds < best[0]:
                        best = (seconds, choice)
                steps[str(tokens)] = linear_choice.write_choice(best[1])
                report.add("linear", case, best[0], moved, cublas_us=round(vendor * 1e6, 2), best=steps[str(tokens)])
                report.rows[-1]["tried"] = tried
            table[f"{num_rows}x{size}"] = steps
    return table


def multiply(x: torch.Tensor, weight: torch.Tensor, choice: Vector | Tile, workspace: linear_op.SplitWorkspace):
    out = x.new_empty(x.shape[0], weight.shape[0])
    if isinstance(choice, Vector):
        return linear_op.multiply_vector(x, weight, None, out, choice)
    return linear_op.multiply_tile(x, weight, None, out, choice, workspace)


def compile_part(part: int, parts: int) -> None:
    """Compile this part of the candidates into the cache on disk."""
    workspace = linear_op.SplitWorkspace(torch.device("cuda"))
    weight = random(4096, 2048)
    jobs = [(tokens, choice) for tokens in (1, 2, 4, 16, 32, 64) for choice in candidates(tokens)]
    for tokens, choice in jobs[part::parts]:
        try:
            multiply(random(tokens, 2048), weight, choice, workspace)
        except Exception as problem:
            print(f"{choice}: {type(problem).__name__}: {str(problem)[:160]}")
    torch.cuda.synchronize()


def bench_linear(report: Report) -> None:
    packer = linear_op.LinearPacker(torch.device("cuda"), torch.cuda.get_device_name(0))
    for model in MODELS:
        for tokens in (1, 4, 16, 64):
            ours = vendor = 0.0
            for name, (num_rows, size) in model.weights().items():
                weights = [random(num_rows, size, scale=size**-0.5) for _ in range(copies_of(num_rows * size * 2))]
                ops = [packer(w, None) for w in weights]
                x = random(tokens, size)
                repeat = max(1, 16 // len(weights))
                seconds = timed([lambda op=op: op(x) for op in ops] * repeat)
                times = timed([lambda w=w: torch.nn.functional.linear(x, w) for w in weights] * repeat)
                layers = 1 if name == "head" else model.layers
                ours, vendor = ours + layers * seconds, vendor + layers * times
                case = f"{model.name} {name} M={tokens}"
                report.add("linear", case, seconds, num_rows * size * 2, cublas_us=round(times * 1e6, 2))
            print(f"  {model.name} M={tokens}: a step's products {ours * 1e3:.3f} ms, cuBLAS {vendor * 1e3:.3f} ms")


class StepModel:
    """The kernels of one decode step in the order a decoder launches them, with weights of its own per layer."""

    def __init__(self, model: Model, tokens: int, length: int) -> None:
        self.model = model
        self.packer = linear_op.LinearPacker(torch.device("cuda"), torch.cuda.get_device_name(0))
        shapes = model.weights()
        head = shapes.pop("head")
        self.layers = [
            {name: self.packer(random(*shape, scale=shape[1] ** -0.5), None) for name, shape in shapes.items()}
            for _ in range(model.layers)
        ]
        self.head = self.packer(random(*head, scale=head[1] ** -0.5), None)
        self.norm_weight = random(model.hidden)
        self.norms = HeadNorms(random(128), random(128), 1e-6) if model.head_norms else None
        layout, _, caches, table = attention_case(model.heads, [length - 1] * tokens, [1] * tokens)
        self.caches = [caches] + [[c.clone() for c in caches] for _ in range(min(model.layers, 8) - 1)]
        self.slots = table[:, length - 1].long()
        angles = torch.randn(tokens, 64, device="cuda")
        self.cos, self.sin = angles.cos(), angles.sin()
        self.attention = TritonAttention(model.heads, torch.device("cuda"))
        self.buffers = self.attention.make_buffers(tokens, tokens, table)
        self.attention.plan_into(self.buffers, layout)
        self.params = AttentionParams(scale=128**-0.5)
        self.embedded = random(tokens, model.hidden)
        self.bytes = 2 * (model.layers * sum(a * b for a, b in shapes.values()) + math.prod(head))
        self.bytes += model.layers * tokens * length * model.heads.num_kv_heads * 128 * 4

    def attend(self, qkv: torch.Tensor, layer: int) -> torch.Tensor:
        caches = self.caches[layer % len(self.caches)]
        q = rotary.rotary_store(qkv, self.model.heads, self.cos, self.sin, self.norms, *caches, self.slots)
        return self.attention.run(q, *caches, self.buffers.plan, self.params).flatten(1)

    def vendor(self) -> torch.Tensor:
        """Products by cuBLAS, everything else a kernel of ours."""
        linear = torch.nn.functional.linear
        residual = self.embedded.clone()
        x = norm.rms_norm(residual, self.norm_weight, 1e-5)
        for index, layer in enumerate(self.layers):
            if index:
                x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            x = linear(self.attend(linear(x, layer["qkv"].weight), index), layer["output"].weight)
            x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            x = linear(activation.gated_activation(linear(x, layer["gate_up"].weight), "silu"), layer["down"].weight)
        return linear(norm.add_rms_norm(x, residual, self.norm_weight, 1e-5), self.head.weight)

    def without(self, norms: bool = True, attention: bool = True, rotation: bool = True) -> torch.Tensor:
        """The products, and of the rest what is named: where the time between the products goes."""
        residual = self.embedded.clone()
        x = residual
        for index, layer in enumerate(self.layers):
            if norms:
                x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            caches = self.caches[index % len(self.caches)]
            qkv = layer["qkv"](x)
            q = qkv[:, : self.model.heads.num_q_heads * 128]
            if rotation:
                q = rotary.rotary_store(qkv, self.model.heads, self.cos, self.sin, self.norms, *caches, self.slots)
            if attention:
                q = self.attention.run(q.view(len(x), -1, 128), *caches, self.buffers.plan, self.params)
            x = layer["output"](q.reshape(len(x), -1))
            if norms:
                x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            x = layer["down"](layer["gate_up"].gated(x, "silu"))
        return self.head(x)

    def plain(self) -> torch.Tensor:
        """Products chosen by the table, nothing fused into them."""
        residual = self.embedded.clone()
        x = norm.rms_norm(residual, self.norm_weight, 1e-5)
        for index, layer in enumerate(self.layers):
            if index:
                x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            x = layer["output"](self.attend(layer["qkv"](x), index))
            x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            x = layer["down"](activation.gated_activation(layer["gate_up"](x), "silu"))
        return self.head(norm.add_rms_norm(x, residual, self.norm_weight, 1e-5))

    def gated(self) -> torch.Tensor:
        """The same with the gate inside the product."""
        residual = self.embedded.clone()
        x = norm.rms_norm(residual, self.norm_weight, 1e-5)
        for index, layer in enumerate(self.layers):
            if index:
                x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            x = layer["output"](self.attend(layer["qkv"](x), index))
            x = norm.add_rms_norm(x, residual, self.norm_weight, 1e-5)
            x = layer["down"](layer["gate_up"].gated(x, "silu"))
        return self.head(norm.add_rms_norm(x, residual, self.norm_weight, 1e-5))


def bench_step(report: Report) -> None:
    """A whole decode step's kernels in one graph."""
    for model in MODELS:
        for tokens, length in ((1, 256), (8, 1024), (32, 640), (64, 1024)):
            step = StepModel(model, tokens, length)
            variants: dict[str, Callable[[], torch.Tensor]] = {
                "vendor": step.vendor,
                "plain": step.plain,
                "gated": step.gated,
                "no attention": lambda step=step: step.without(attention=False),
                "no attention, rotation": lambda step=step: step.without(attention=False, rotation=False),
                "products alone": lambda step=step: step.without(False, False, False),
            }
            exact = step.vendor().float()
            for name, call in variants.items():
                error = float((call().float() - exact).norm() / exact.norm())
                case = f"{model.name} {tokens} x {length} {name}"
                report.add("decode step", case, timed([call]), step.bytes, error=round(error, 4))
            del step
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="norm,rotary,decode,prefill,linear,step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tune", type=Path)
    parser.add_argument("--sweep", action="store_true", help="also other tilings of attention")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.compile:
        part, parts = map(int, options.compile.split("/"))
        return compile_part(part, parts)
    compilations: dict[str, list[float]] = {}
    note_compilations(compilations)
    report = Report()
    measure_limits(report)
    if options.tune:
        table = tune_linear(report, workers=min(14, os.cpu_count() or 1))
        options.tune.write_text(json.dumps({"device": torch.cuda.get_device_name(0), "linear": table}, indent=1) + "\n")
        linear_choice.tuned_table.cache_clear()
    sections = {
        "norm": lambda: bench_norm(report),
        "rotary": lambda: bench_rotary(report),
        "decode": lambda: bench_decode(report, options.sweep),
        "prefill": lambda: bench_prefill(report, options.sweep),
        "linear": lambda: bench_linear(report),
        "step": lambda: bench_step(report),
    }
    for name in filter(None, options.only.split(",")):
        begin = time.perf_counter()
        sections[name]()
        print(f"-- {name}: {time.perf_counter() - begin:.1f} s", flush=True)
        if options.json:
            environment = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "command": sys.argv[1:]}
            options.json.write_text(
                json.dumps(
                    {**environment, "limits": report.limits, "compile_seconds": compilations, "rows": report.rows},
                    indent=1,
                )
            )
    for name, times in compilations.items():
        print(f"compiled {name}: {len(times)} variants, {sum(times):.1f} s")


if __name__ == "__main__":
    main()
