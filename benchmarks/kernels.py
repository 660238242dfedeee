"""For who writes kernels: what `lightllm bench kernels` leaves out. All of it needs a GPU.

    python benchmarks/kernels.py [--only step,tilings,library] [--json FILE]

step: the kernels of a whole decode step in one graph, as they are, with cuBLAS, and with parts left out. tilings: other
tilings of attention beside the one in use. library: what torch offers for prompts without a prefix.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional

from lightllm.bench import kernels
from lightllm.bench.kernel_timing import copies_of, time_launches
from lightllm.bench.kernels import BUNDLED, Inputs, ModelShape, attention_inputs, decode_plan
from lightllm.bench.report import command_line, software, write_json
from lightllm.kernels.ops.contracts import AttentionParams, HeadNorms
from lightllm.kernels.triton import activation, norm, rotary
from lightllm.kernels.triton.attention_backend import TritonAttention
from lightllm.kernels.triton.attention_tiling import Tiling
from lightllm.kernels.triton.linear_op import LinearPacker, multiply_plainly

INPUTS = Inputs(torch.device("cuda"), torch.bfloat16)
DECODE_TILINGS = [(16, 64, 4, 3, 4), (16, 64, 4, 5, 3), (16, 128, 4, 5, 1)]
PREFILL_TILINGS = [(128, 64, 8, 5, 1), (256, 64, 8, 5, 1)]
STEPS = ((1, 256), (8, 1024), (32, 640), (64, 1024))
"""Sequences and their length."""


class Rows(list[dict[str, Any]]):
    """What was measured, printed as it comes."""

    def add(self, name: str, seconds: float, **figures: float) -> None:
        self.append({"case": name, "us": round(seconds * 1e6, 2), **figures})
        print(f"{name:64}{seconds * 1e6:10.1f} us", *(f" {k} {v:.4g}" for k, v in figures.items()), flush=True)


def sweep_tilings(rows: Rows) -> None:
    """Times of attention with other tilings, for the first of the bundled shapes."""
    heads = BUNDLED[0].heads
    params = AttentionParams(scale=heads.head_dim**-0.5)
    cases = [(f"decode {k}", [n - 1 for n in v], [1] * len(v), DECODE_TILINGS) for k, v in kernels.DECODES.items()]
    cases += [(f"prefill {k}", list(s), list(n), PREFILL_TILINGS) for k, (s, n) in list(kernels.PROMPTS.items())[:2]]
    for name, starts, lens, tilings in cases:
        layout, q, pool, table = attention_inputs(heads, starts, lens, INPUTS)
        pools = [pool] + [tuple(t.clone() for t in pool) for _ in range(copies_of(2 * pool[0].nbytes) - 1)]
        for tiling in (None, *tilings):
            options = [] if tiling is None else [lambda *_, t=tiling: Tiling(*t)]
            backend = TritonAttention(heads, INPUTS.device, *options)
            plan = backend.plan(layout, table)
            try:
                seconds = time_launches([partial(backend.run, q, *p, plan, params) for p in pools])
            except Exception as problem:
                print(f"{name} {tiling}: {type(problem).__name__}: {str(problem)[:200]}")
                continue
            rows.add(f"attention {name} {tiling or 'as in use'}", seconds)


def compare_library(rows: Rows) -> None:
    """torch's own attention for equal prompts without a prefix, keys and values gathered beforehand."""
    for model in BUNDLED:
        heads = model.heads
        for count, length in ((16, 2048), (64, 128)):
            layout, q, (keys, values), table = attention_inputs(heads, [0] * count, [length] * count, INPUTS)
            params = AttentionParams(scale=heads.head_dim**-0.5)
            backend = TritonAttention(heads, INPUTS.device)
            slots = table[:, :length].reshape(-1).long()
            firsts = torch.arange(0, (count + 1) * length, length, dtype=torch.int32, device=INPUTS.device)
            flat = (q, keys[slots], values[slots])
            dense = [t.view(count, length, -1, heads.head_dim).transpose(1, 2) for t in flat]
            varlen = (firsts, firsts, length, length)
            own = partial(backend.run, q, keys, values, backend.plan(layout, table), params)
            flash = partial(torch.ops.aten._flash_attention_forward, *flat, *varlen, 0.0, True, False)
            calls = {"ours": own, "cudnn dense": partial(_dense, *dense), "flash varlen": flash}
            operations = 2 * count * length * (length + 1) * heads.num_q_heads * heads.head_dim
            for name, call in calls.items():
                case = f"{model.name} {count} x {length} {name}"
                try:
                    seconds = time_launches([call])
                except Exception as problem:
                    print(f"{case}: {type(problem).__name__}: {str(problem)[:200]}")
                    continue
                rows.add(case, seconds, tflops=operations / seconds / 1e12)


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] > k.shape[1])


class Step:
    """The kernels of one decode step in the order a decoder launches them, with weights of its own per layer."""

    def __init__(self, model: ModelShape, count: int, length: int) -> None:
        self.model = model
        self.packer = LinearPacker(INPUTS.device, torch.cuda.get_device_name())
        shapes = model.weights()
        head, dim = shapes.pop("head"), model.heads.head_dim
        self.layers = [{name: self._product(shape) for name, shape in shapes.items()} for _ in range(model.layers)]
        self.head = self._product(head)
        self.weight = INPUTS.random(model.hidden)
        self.norms = HeadNorms(INPUTS.random(dim), INPUTS.random(dim), 1e-6) if model.head_norms else None
        layout, _, pool, table = attention_inputs(model.heads, [length - 1] * count, [1] * count, INPUTS)
        self.pools = [pool] + [tuple(t.clone() for t in pool) for _ in range(min(model.layers, 8) - 1)]
        self.slots = table[:, length - 1].long()
        angles = torch.randn(count, model.heads.rotary_dim // 2, device=INPUTS.device)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.attention = TritonAttention(model.heads, INPUTS.device)
        self.plan = decode_plan(self.attention, layout, table)
        self.params = AttentionParams(scale=dim**-0.5)
        self.embedded = INPUTS.random(count, model.hidden)
        self.bytes = 2 * (model.layers * sum(map(math.prod, shapes.values())) + math.prod(head))
        self.bytes += model.layers * count * length * model.heads.num_kv_heads * dim * 4

    def _product(self, shape: tuple[int, int]) -> Any:
        return self.packer(INPUTS.random(*shape, scale=shape[1] ** -0.5), None)

    def run(
        self,
        *,
        vendor: bool = False,
        gate_apart: bool = False,
        norms: bool = True,
        attention: bool = True,
        rotation: bool = True,
    ) -> Tensor:
        """One step. `vendor`: cuBLAS multiplies; `gate_apart`: the gate is a kernel of its own; the rest leaves out."""
        residual = self.embedded.clone()
        for index, layer in enumerate(self.layers):
            x = norm.rms_norm(residual, self.weight, 1e-5) if norms else self.embedded
            x = self._attend(_multiply(layer["qkv"], x, vendor), index, attention, rotation)
            _add(layer["output"], x, residual, vendor)
            x = norm.rms_norm(residual, self.weight, 1e-5) if norms else self.embedded
            if vendor or gate_apart:
                gated = activation.gated_activation(_multiply(layer["gate_up"], x, vendor), "silu")
            else:
                gated = layer["gate_up"].gated(x, "silu")
            _add(layer["down"], gated, residual, vendor)
        return _multiply(self.head, norm.rms_norm(residual, self.weight, 1e-5), vendor)

    def _attend(self, qkv: Tensor, index: int, attention: bool, rotation: bool) -> Tensor:
        heads, pool = self.model.heads, self.pools[index % len(self.pools)]
        q = qkv[:, : heads.num_q_heads * heads.head_dim].unflatten(1, (heads.num_q_heads, heads.head_dim))
        if rotation:
            q = rotary.rotary_store(qkv, heads, self.cos, self.sin, self.norms, *pool, self.slots)
        return (self.attention.run(q, *pool, self.plan, self.params) if attention else q).flatten(1)


def _multiply(op: Any, x: Tensor, vendor: bool) -> Tensor:
    return multiply_plainly(x, op.weight, None) if vendor else op(x)


def _add(op: Any, x: Tensor, residual: Tensor, vendor: bool) -> None:
    if vendor:
        multiply_plainly(x, op.weight, None, residual)
    else:
        op.add(x, residual)


def take_step_apart(rows: Rows) -> None:
    """A whole decode step's kernels in one graph, and what is saved by leaving some out."""
    for model in BUNDLED:
        for count, length in STEPS:
            step = Step(model, count, length)
            variants: dict[str, dict[str, bool]] = {
                "as it is": {},
                "products by cuBLAS": {"vendor": True},
                "gate apart": {"gate_apart": True},
                "no attention": {"attention": False},
                "no attention, rotation": {"attention": False, "rotation": False},
                "products alone": {"attention": False, "rotation": False, "norms": False},
            }
            for name, options in variants.items():
                seconds = time_launches([partial(step.run, **options)])
                rows.add(f"{model.name} {count} x {length} {name}", seconds, tb_per_s=step.bytes / seconds / 1e12)
            del step
            torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Rows], None]] = {
    "step": take_step_apart,
    "tilings": sweep_tilings,
    "library": compare_library,
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = Rows()
    for name in options.only.split(","):
        PARTS[name](rows)
    if options.json:
        machine = {"device": torch.cuda.get_device_name(), **software()}
        write_json(options.json, {"command": command_line(), "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
