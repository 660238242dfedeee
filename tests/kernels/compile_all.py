"""Compiles every Triton kernel as a GPU of some capability would, without one; exits with the first error."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from fake_device import CAPABILITY, SHARED_BYTES, compiled

from lightllm.kernels.ops.contracts import AttentionParams, HeadNorms, HeadShape, SequenceLayout
from lightllm.kernels.triton import activation, attention_backend, launch, linear_op, norm, rotary, sampling_op, tokens
from lightllm.kernels.triton.compiling import compiled_together
from lightllm.kernels.triton.linear_choice import Persistent, Tile, Vector, by_rule, tuned_table

HOPPER = CAPABILITY == 90
CPU = torch.device("cpu")
HALF = torch.bfloat16
SHAPES = [HeadShape(32, 8, 128, 128), HeadShape(16, 16, 64, 32), HeadShape(3, 1, 24, 24, interleaved=True)]


def zeros(*size: int, dtype: torch.dtype = HALF) -> torch.Tensor:
    return torch.zeros(*size, dtype=dtype)


def pointwise() -> None:
    ids = torch.zeros(5, dtype=torch.int32)
    tokens.embed(ids, zeros(11, 96))
    tokens.place_tokens(zeros(3, 9, dtype=torch.int32), zeros(3, 9, dtype=torch.int32), ids, ids, ids)
    tokens.move(ids, torch.zeros_like(ids))
    norm.rms_norm(zeros(5, 4096), zeros(4096), 1e-5)
    for kind in ("silu", "gelu", "gelu_tanh"):
        activation.gated_activation(zeros(5, 6144), kind)
    for shape, normed, count in itertools.product(SHAPES, (False, True), (1, 4096)):
        weight = zeros(shape.head_dim)
        qkv = zeros(count, (shape.num_q_heads + 2 * shape.num_kv_heads) * shape.head_dim)
        cos, sin = zeros(count, shape.rotary_dim, dtype=torch.float32).chunk(2, 1)
        pool = [zeros(4, shape.num_kv_heads, shape.head_dim) for _ in range(2)]
        norms = HeadNorms(weight, weight, 1e-6) if normed else None
        rotary.rotary_store(qkv, shape, cos, sin, norms, *pool, torch.zeros(count, dtype=torch.int32))


def attention() -> None:
    kinds = [{}, {"window": 5}, {"soft_cap": 30.0}, {"alibi_slopes": zeros(32, dtype=torch.float32)}]
    large = [HeadShape(8, 1, 256, 256), HeadShape(8, 8, 256, 256)]
    for shape, kind in [*((SHAPES[0], kind) for kind in kinds), *((shape, {}) for shape in (*SHAPES[1:], *large))]:
        backend = attention_backend.TritonAttention(shape, CPU)
        layout = SequenceLayout(*(np.array(v, np.int32) for v in ([0, 1, 2], [9000, 0, 3], [1, 300, 20])))
        plan = backend.plan(layout, torch.zeros(3, 9100, dtype=torch.int32))
        pool = [zeros(9100, shape.num_kv_heads, shape.head_dim) for _ in range(2)]
        backend.run(zeros(321, shape.num_q_heads, shape.head_dim), *pool, plan, AttentionParams(0.1, **kind))


def products() -> None:
    workspace = linear_op.SplitWorkspace(CPU)
    choices = {choice for steps in tuned_table("NVIDIA H200").values() for _, choice in steps} if HOPPER else set()
    for choice in [*choices, Tile(64, 64, 2, 3, 4), by_rule(4096), by_rule(512)]:
        weight = zeros(256, 4096)
        if isinstance(choice, Tile):
            linear_op.multiply_tile(zeros(32, 4096), weight, None, zeros(32, 256), choice, workspace)
            linear_op.multiply_tile(zeros(32, 4096), weight, None, zeros(32, 128), choice, workspace, "silu")
            linear_op.multiply_tile(zeros(32, 4096), weight, None, zeros(32, 256), choice, workspace, add=True)
        if isinstance(choice, Vector):
            linear_op.multiply_vector(zeros(1, 4096), weight, None, zeros(1, 256), choice)
            linear_op.multiply_vector(zeros(1, 4096), weight, None, zeros(1, 256), choice, add=True)
            if choice.rows > 1:
                linear_op.multiply_vector(zeros(1, 4096), weight, None, zeros(1, 128), choice, "silu")
    if HOPPER:
        for kind, count in itertools.product((None, "silu", "gelu", "gelu_tanh"), (120, 180)):  # tiles of either height
            out = zeros(count, 256 if kind is None else 128)
            linear_op.multiply_persistent(zeros(count, 4096), weight, out, Persistent(32), kind)


def sampling() -> None:
    count = 40
    ids = torch.zeros(count, dtype=torch.int64)
    chooser = sampling_op.Chooser(count, CPU)
    column = torch.ones(count, 1, dtype=torch.float64)
    inputs = sampling_op.DrawInputs(None, column.float(), column.float(), column.long(), column, column, filtered=True)
    history = zeros(count, 9, dtype=torch.int32)
    for where in (None, (history, ids, ids), (history, ids.int(), ids.int())):
        chooser(zeros(count, 32003), inputs, where)
        chooser(zeros(1, 32003, dtype=torch.float32), None, where)


def rehearsed_sampling() -> None:
    """After a rehearsal, batches of any size and parameters find their kernels compiled."""
    history, most = zeros(9, 64, dtype=torch.int32), 300
    chooser = sampling_op.Chooser(most, CPU)
    for num_rows in sampling_op.REHEARSED_ROWS:
        chooser.rehearse(num_rows, 32003, HALF, history)
    known = len(compiled)
    for count in (1, 2, 3, 4, 5, 7, 16, 31, 32, 33, 63, 65, 128, 255, 256, 300):
        logits = zeros(count, 32003)
        for places in (torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int32)):
            where = (history, places, places)
            for drawn, filtered in itertools.product((count, (count + 1) // 2), (False, True)):
                column = torch.ones(drawn, 1, dtype=torch.float64)
                indices = None if drawn == count else torch.zeros(drawn, dtype=torch.int64)
                draw = (indices, column.float(), column.float(), column.long(), column, column, filtered)
                likeliest = sampling_op.GreedyChooser(most, CPU)(logits, where)
                chooser(logits, sampling_op.DrawInputs(*draw), where)
                chooser(logits, sampling_op.DrawInputs(*draw), where, likeliest)
            chooser(logits, None, where)
    assert len(compiled) == known, compiled[known:]


launch._INTERPRETED = launch.Launcher(132, SHARED_BYTES, dependent=HOPPER, hopper=HOPPER)
with torch.inference_mode():
    for attempt in range(2):  # together, which leaves out what fails; then one by one, which does not
        for kernels in (pointwise, attention, products, sampling):
            if attempt == 0:
                with compiled_together():
                    kernels()
            else:
                kernels()
    rehearsed_sampling()
print(len(compiled), "compiled")
