"""Putting an engine around a loaded model, first a small one to measure what a full step needs, then the real one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from lightllm.device.device import Device
from lightllm.engine.budget import room_for
from lightllm.engine.graphs import GraphAttention, StepGraphs, logits_bytes
from lightllm.engine.rows import RowTables
from lightllm.engine.runner import Engine
from lightllm.kernels.ops.contracts import KernelSet
from lightllm.kvcache.pool import KvPool
from lightllm.models.decoder import Decoder, DecoderSpec
from lightllm.protocol.plan import OpenedRow, StepPlan
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.sampling.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything of an engine but its memory."""

    model: Decoder
    kernels: KernelSet
    spec: DecoderSpec
    dtype: torch.dtype
    device: Device
    max_running: int
    threads: int | None

    def engine(self, total_tokens: int, max_len: int, *, graph_tokens: int = 0) -> Engine:
        """An engine with a pool of `total_tokens` slots for sequences up to `max_len`, and graphs for steps of up to
        `graph_tokens` (0: none)."""
        where = self.device.torch_device
        pool = KvPool(self.spec.kv_layout(self.dtype), total_tokens, where)
        rows = RowTables(self.max_running, max_len, total_tokens, where)
        sampler = Sampler(max_rows=self.max_running, vocab_size=self.spec.vocab_size, device=where)
        parts = (self.model, pool, self.kernels, sampler, rows, self.device)
        if not graph_tokens:
            return Engine(*parts, threads=self.threads)
        most = min(self.max_running, graph_tokens)
        graphs = StepGraphs(self.model, pool, self.kernels, rows, most, graph_tokens)
        rehearsals = sampler.rehearsals(rows.history, self.dtype)
        return Engine(*parts, threads=self.threads, graphs=graphs, rehearsals=rehearsals)


def measure_working_memory(frame: Frame, step_tokens: int, max_len: int) -> int:
    """Bytes that steps need beside the weights and the pool: what a full step holds at its peak, kept apart by torch
    for the stream of steps, the stream of captures and the graphs; the logits graphs keep; the tables of the rows."""
    logits = logits_bytes(min(frame.max_running, step_tokens), frame.spec.vocab_size, frame.dtype.itemsize)
    tables = 2 * 4 * (frame.max_running + 1) * (max_len + 1)
    return 3 * measure_step(frame, step_tokens, max_len) + logits + tables


def measure_step(frame: Frame, step_tokens: int, max_len: int) -> int:
    """Bytes that a full step takes at its peak, found by running one, its kernels having been compiled together.

    The step has as many sequences as may run, of up to `max_len` tokens, all sampled. Raises OutOfMemory when it does
    not fit at all.
    """
    # Imported here, where there is a GPU: Triton is optional.
    from lightllm.kernels.triton.compiling import compiled_together

    device = frame.device.torch_device
    count = min(frame.max_running, step_tokens)
    step_tokens = min(step_tokens, count * max_len)
    lens = np.full(count, step_tokens // count, np.int32)
    lens[: step_tokens % count] += 1
    advice = "lower --max-step-tokens or --max-running, or use a larger device"
    with room_for(f"a step of {step_tokens} tokens of {count} requests beside the weights", advice):
        cast(GraphAttention, frame.kernels.attention).reserve(count, step_tokens)
        engine = frame.engine(step_tokens, int(lens[0]) + 1)
        with compiled_together():
            engine.launch(_full_step(count, lens)).check()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        engine.collect(engine.launch(_full_step(count, lens)))
        peak = torch.cuda.max_memory_allocated(device) - before
    del engine
    torch.cuda.empty_cache()
    return int(peak)


def _full_step(count: int, lens: np.ndarray) -> StepPlan:
    params = SamplingParams(temperature=1.0, top_p=0.9)
    opened = tuple(OpenedRow(row, np.zeros(lens[row], np.int32), int(lens[row]), params, 0, ()) for row in range(count))
    return StepPlan(
        step=0,
        rows=np.arange(count, dtype=np.int32),
        starts=np.zeros(count, np.int32),
        lens=lens,
        slots=np.arange(int(lens.sum()), dtype=np.int32),
        sampled=np.ones(count, np.bool_),
        prompt_logprobs=np.zeros(count, np.bool_),
        opened=opened,
    )
