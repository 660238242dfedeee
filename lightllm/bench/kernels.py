"""What the GPU kernels are timed on: a model's shapes at a few sizes of a step, and the bytes or operations of each.

case = one kernel at one size; `prepare` makes its inputs and says what it moves or computes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from lightllm.bench.kernel_timing import Launch, copies_of
from lightllm.kernels.ops.contracts import AttentionParams, HeadNorms, HeadShape, SequenceLayout
from lightllm.kernels.triton.activation import gated_activation
from lightllm.kernels.triton.attention_backend import TritonAttention
from lightllm.kernels.triton.linear_op import LinearPacker
from lightllm.kernels.triton.norm import rms_norm
from lightllm.kernels.triton.rotary import rotary_store
from lightllm.kernels.triton.sampling_op import Chooser, DrawInputs
from lightllm.models.decoder import DecoderSpec

STEP_TOKENS = (1, 64, 8192)
PRODUCT_TOKENS = (1, 4, 16, 64)
SAMPLED_ROWS = (1, 64, 256)
DECODES = {
    "1 x 256": (256,),
    "1 x 8k": (8192,),
    "8 x 4k": (4096,) * 8,
    "32 x 1k": (1024,) * 32,
    "64 x 2k": (2048,) * 64,
    "8 x 32k": (32768,) * 8,
    "256 x 100-1500": tuple(np.random.default_rng(0).integers(100, 1500, 256).tolist()),
}
"""Lengths of the sequences of a decode step."""
PROMPTS = {
    "16 x 2048": ((0,) * 16, (2048,) * 16),
    "4 x 2048 after 6144": ((6144,) * 4, (2048,) * 4),
    "1 x 256 after 16k": ((16384,), (256,)),
    "64 x 128": ((0,) * 64, (128,) * 64),
    "48 decodes at 1k + 512": ((1023,) * 48 + (0,), (1,) * 48 + (512,)),
}
"""Starts and lengths of the chunks of a step with prompts."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a decoder that decide how fast its kernels can be."""

    name: str
    hidden: int
    ffn: int
    vocab: int
    layers: int
    heads: HeadShape
    head_norms: bool

    @classmethod
    def of(cls, name: str, spec: DecoderSpec) -> ModelShape:
        sizes = (spec.hidden_size, spec.ffn_size, spec.vocab_size, spec.num_layers)
        return cls(name, *sizes, spec.head_shape, spec.head_norms)

    def weights(self) -> dict[str, tuple[int, int]]:
        """Weights [out, in] of the matrix products."""
        q, kv = self.heads.num_q_heads * self.heads.head_dim, self.heads.num_kv_heads * self.heads.head_dim
        return {
            "qkv": (q + 2 * kv, self.hidden),
            "output": (self.hidden, q),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
            "head": (self.vocab, self.hidden),
        }


BUNDLED = (
    ModelShape("Llama-3-8B", 4096, 14336, 128256, 32, HeadShape(32, 8, 128, 128), False),
    ModelShape("Qwen3-0.6B", 1024, 3072, 151936, 28, HeadShape(16, 8, 128, 128), True),
)


@dataclass(frozen=True, slots=True)
class Work:
    """Launches to rotate through, the bytes or operations one of them needs, and the vendor's launches for the same."""

    launches: Sequence[Launch]
    num_bytes: float = 0.0
    operations: float = 0.0
    vendor: Sequence[Launch] = field(default=())


@dataclass(frozen=True, slots=True)
class Case:
    kernel: str
    name: str
    prepare: Callable[[], Work]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Makes random tensors of the benchmark's dtype on its device."""

    device: torch.device
    dtype: torch.dtype

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * scale

    def randoms(self, *shape: int, total: int) -> list[Tensor]:
        """As many as exceed the cache, a launch touching `total` bytes."""
        return [self.random(*shape) for _ in range(copies_of(total))]


def all_cases(models: Sequence[ModelShape], inputs: Inputs) -> Iterator[Case]:
    """Every kernel at every size, in the order of a step."""
    for model in models:
        yield from _pointwise(model, inputs)
        yield from _linear(model, inputs)
        yield from _attention(model, inputs)
        yield from _sampling(model, inputs)


def _pointwise(model: ModelShape, inputs: Inputs) -> Iterator[Case]:
    kernels = {
        "rms_norm": _rms_norm,
        "gated_activation": _gated_activation,
        "rotary_store": _rotary_store,
    }
    for kernel, prepare in kernels.items():
        for tokens in STEP_TOKENS:
            yield Case(kernel, f"{model.name} {tokens} tokens", partial(prepare, model, tokens, inputs))


def _rms_norm(model: ModelShape, tokens: int, inputs: Inputs) -> Work:
    size, weight = tokens * model.hidden * inputs.dtype.itemsize, inputs.random(model.hidden)
    xs = inputs.randoms(tokens, model.hidden, total=2 * size)
    return Work([partial(rms_norm, x, weight, 1e-5) for x in xs], num_bytes=2 * size)


def _gated_activation(model: ModelShape, tokens: int, inputs: Inputs) -> Work:
    size = 3 * tokens * model.ffn * inputs.dtype.itemsize
    gates = inputs.randoms(tokens, 2 * model.ffn, total=size)
    return Work([partial(gated_activation, gate, "silu") for gate in gates], num_bytes=size)


def _rotary_store(model: ModelShape, tokens: int, inputs: Inputs) -> Work:
    heads = model.heads
    width = (heads.num_q_heads + 2 * heads.num_kv_heads) * heads.head_dim
    norms = HeadNorms(inputs.random(heads.head_dim), inputs.random(heads.head_dim), 1e-6) if model.head_norms else None
    keys, values = inputs.random(2, 2 * max(STEP_TOKENS), heads.num_kv_heads, heads.head_dim)
    angles = torch.randn(tokens, heads.rotary_dim // 2, device=inputs.device)
    cos, sin, slots = angles.cos(), angles.sin(), torch.randperm(len(keys), device=inputs.device)[:tokens]
    size = 2 * tokens * width * inputs.dtype.itemsize
    launches = [
        partial(rotary_store, x, heads, cos, sin, norms, keys, values, slots)
        for x in inputs.randoms(tokens, width, total=size)
    ]
    return Work(launches, num_bytes=size)


def _linear(model: ModelShape, inputs: Inputs) -> Iterator[Case]:
    for name, (num_rows, size) in model.weights().items():
        for tokens in PRODUCT_TOKENS:
            case = f"{model.name} {name} {num_rows}x{size}, {tokens} tokens"
            yield Case("linear", case, partial(_product, num_rows, size, tokens, inputs))
    for tokens in STEP_TOKENS:
        case = f"{model.name} {2 * model.ffn}x{model.hidden}, {tokens} tokens"
        yield Case("gated linear", case, partial(_product, 2 * model.ffn, model.hidden, tokens, inputs, gated=True))


def _product(num_rows: int, size: int, tokens: int, inputs: Inputs, *, gated: bool = False) -> Work:
    name = torch.cuda.get_device_name(inputs.device) if inputs.device.type == "cuda" else "none"
    packer, x = LinearPacker(inputs.device, name), inputs.random(tokens, size)
    weights = product_weights(num_rows, size, inputs)
    ops = [packer(weight, None) for weight in weights]
    return Work(
        [partial(op.gated, x, "silu") if gated else partial(op, x) for op in ops],
        num_bytes=weights[0].nbytes,
        operations=2 * tokens * num_rows * size,
        vendor=[partial(_multiply_gated if gated else linear, x, weight) for weight in weights],
    )


def _multiply_gated(x: Tensor, weight: Tensor) -> Tensor:
    return gated_activation(linear(x, weight), "silu")


def product_weights(num_rows: int, size: int, inputs: Inputs) -> list[Tensor]:
    """Weights [num_rows, size] to rotate through, scaled so that products stay near one."""
    count = copies_of(num_rows * size * inputs.dtype.itemsize)
    return [inputs.random(num_rows, size, scale=size**-0.5) for _ in range(count)]


def _attention(model: ModelShape, inputs: Inputs) -> Iterator[Case]:
    for name, lengths in DECODES.items():
        yield Case("attention decode", f"{model.name} {name}", partial(_decode, model.heads, lengths, inputs))
    for name, (starts, lens) in PROMPTS.items():
        case = f"{model.name} {name}"
        yield Case("attention prefill", case, partial(_prefill, model.heads, starts, lens, inputs))


def attention_inputs(
    heads: HeadShape, starts: Sequence[int], lens: Sequence[int], inputs: Inputs
) -> tuple[SequenceLayout, Tensor, tuple[Tensor, Tensor], Tensor]:
    """A step's layout, queries [T, Hq, D], keys and values [N, Hk, D], and the table, every key at a random slot."""
    layout = SequenceLayout(*(np.array(values, np.int32) for values in (range(len(starts)), starts, lens)))
    slots = torch.randperm(int(layout.kv_lens.sum()), dtype=torch.int32)
    table = torch.zeros(len(starts), int(layout.kv_lens.max()), dtype=torch.int32)
    for row, own in enumerate(slots.split(layout.kv_lens.tolist())):
        table[row, : len(own)] = own
    q = inputs.random(int(layout.lens.sum()), heads.num_q_heads, heads.head_dim)
    keys, values = (inputs.random(len(slots) + 1, heads.num_kv_heads, heads.head_dim) for _ in range(2))
    return layout, q, (keys, values), table.to(inputs.device)


def _decode(heads: HeadShape, lengths: Sequence[int], inputs: Inputs) -> Work:
    params = AttentionParams(scale=heads.head_dim**-0.5)
    layout, q, (keys, values), table = attention_inputs(heads, [n - 1 for n in lengths], [1] * len(lengths), inputs)
    size = 2 * keys[1:].nbytes
    pools = [(keys, values)] + [(keys.clone(), values.clone()) for _ in range(copies_of(size) - 1)]
    backend = TritonAttention(heads, inputs.device)
    plan = decode_plan(backend, layout, table)
    return Work([partial(backend.run, q, *pool, plan, params) for pool in pools], num_bytes=size)


def decode_plan(backend: TritonAttention, layout: SequenceLayout, table: Tensor) -> object:
    """The plan of a step of decodes as a graph has it."""
    count = len(layout.rows)
    host = np.empty(backend.buffer_size(count, count), np.int32)
    memory = torch.empty(len(host), dtype=torch.int32, device=table.device)
    buffers = backend.make_buffers(count, count, table, memory)
    backend.plan_into(buffers, layout, host)
    memory.copy_(torch.from_numpy(host))
    return buffers.plan


def _prefill(heads: HeadShape, starts: Sequence[int], lens: Sequence[int], inputs: Inputs) -> Work:
    params = AttentionParams(scale=heads.head_dim**-0.5)
    layout, q, pool, table = attention_inputs(heads, starts, lens, inputs)
    pairs = float((layout.lens.astype(np.float64) * (layout.starts + (layout.lens + 1) / 2)).sum())
    backend = TritonAttention(heads, inputs.device)
    plan = backend.plan(layout, table)
    operations = 4 * pairs * heads.num_q_heads * heads.head_dim
    return Work([partial(backend.run, q, *pool, plan, params)], operations=operations)


def _sampling(model: ModelShape, inputs: Inputs) -> Iterator[Case]:
    kinds = {"greedy": None, "draw": False, "draw with top_p": True}
    for kernel, filtered in kinds.items():
        for rows in SAMPLED_ROWS:
            yield Case(kernel, f"{model.name} {rows} rows", partial(_choose, model.vocab, rows, filtered, inputs))


def _choose(vocab: int, rows: int, filtered: bool | None, inputs: Inputs) -> Work:
    """The bound counts the logits once; a draw must read them again."""
    chooser, draws = Chooser(rows, inputs.device), None
    if filtered is not None:

        def same(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows,), value, dtype=dtype, device=inputs.device)

        temperature, min_p = same(1.0, torch.float32), same(0.0, torch.float32)
        top_k, top_p = same(vocab, torch.int64), same(0.9 if filtered else 1.0, torch.float64)
        draws = DrawInputs(None, temperature, min_p, top_k, top_p, same(0.5, torch.float64), filtered)
    size = rows * vocab * inputs.dtype.itemsize
    return Work([partial(chooser, x, draws) for x in inputs.randoms(rows, vocab, total=size)], num_bytes=size)
