"""CUDA graphs for decode steps: one launch instead of some hundred, so that the host never holds up the device.

A graph covers a bucket of batch sizes; a smaller batch is padded with the spare row, whose KV goes to the spare
slot. Graphs are captured when a bucket is first needed and share one memory pool. What varies from step to step
(rows, positions, slots, the attention's work list) is written into buffers the graph reads.

    inputs [4, B]  rows | positions | rope lengths | slots      ->  logits [B, vocab], greedy ids [B], bad [B]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightllm.engine.rows import RowTables
from lightllm.kernels.ops.contracts import SequenceLayout
from lightllm.kvcache.pool import KvPool
from lightllm.models.decoder import Decoder, ForwardBatch

BUCKETS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
STAGING = 4
"""Host copies of the inputs in rotation: a copy under way is not overwritten."""


class GraphAttention(Protocol):
    """An attention backend whose plan can be rewritten in place."""

    def make_buffers(self, max_sequences: int, max_tokens: int, table: Tensor) -> Any:
        """Buffers whose `plan` goes to `run`."""
        ...

    def plan_into(self, buffers: Any, layout: SequenceLayout) -> None: ...


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """What a replayed graph leaves for S sequences; valid until the next replay of the same bucket."""

    logits: Tensor
    greedy_ids: Tensor
    bad: Tensor


class _Bucket:
    """One captured graph with its buffers."""

    def __init__(self, size: int, rows: RowTables, attention: GraphAttention, device: torch.device) -> None:
        self.size = size
        self.inputs = torch.zeros(4, size, dtype=torch.int64, device=device)
        self.staging = [torch.zeros(4, size, dtype=torch.int64, pin_memory=True) for _ in range(STAGING)]
        self.turn = 0
        self.buffers = attention.make_buffers(size, size, rows.table)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.output: DecodeOutput | None = None


class DecodeGraphs:
    """Runs decode-only steps through graphs, for batches up to `max_batch`."""

    def __init__(
        self,
        model: Decoder,
        pool: KvPool,
        attention: GraphAttention,
        rows: RowTables,
        max_batch: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._pool = pool
        self._attention = attention
        self._rows = rows
        self._device = device
        self._spare_slot = pool.total
        self._sizes = [size for size in BUCKETS if size < max_batch] + [min(max_batch, BUCKETS[-1])]
        self._buckets: dict[int, _Bucket] = {}
        self._memory: Any = None
        # Imported here, where there is a GPU: Triton is optional.
        from lightllm.kernels.triton.sampling_op import GreedyChooser

        self._greedy = GreedyChooser(self._sizes[-1], device)

    @property
    def max_batch(self) -> int:
        return self._sizes[-1]

    def run(self, layout: SequenceLayout, slots: np.ndarray, rope_lens: np.ndarray) -> DecodeOutput:
        """One decode step of S <= max_batch sequences: `layout` with lens of 1, slots [S], rope lengths [S]."""
        count = len(layout.rows)
        bucket = self._bucket(next(size for size in self._sizes if size >= count))
        self._write(bucket, layout, slots, rope_lens)
        if bucket.graph is None:
            self._capture(bucket)
        assert bucket.graph is not None and bucket.output is not None
        bucket.graph.replay()
        output = bucket.output
        return DecodeOutput(output.logits[:count], output.greedy_ids[:count], output.bad[:count])

    def _bucket(self, size: int) -> _Bucket:
        if size not in self._buckets:
            self._buckets[size] = _Bucket(size, self._rows, self._attention, self._device)
        return self._buckets[size]

    def _write(self, bucket: _Bucket, layout: SequenceLayout, slots: np.ndarray, rope_lens: np.ndarray) -> None:
        host = bucket.staging[bucket.turn]
        bucket.turn = (bucket.turn + 1) % STAGING
        count, view = len(layout.rows), host.numpy()
        view[0, :count], view[0, count:] = layout.rows, self._rows.spare_row
        view[1, :count], view[1, count:] = layout.starts, 0
        view[2, :count], view[2, count:] = rope_lens, 1
        view[3, :count], view[3, count:] = slots, self._spare_slot
        bucket.inputs.copy_(host, non_blocking=True)
        self._attention.plan_into(bucket.buffers, layout)

    def _compute(self, bucket: _Bucket) -> DecodeOutput:
        """What the graph records: from rows and positions to logits, greedy ids, and the ids' place in the history."""
        rows, positions, rope_lens, slots = bucket.inputs.unbind()
        self._rows.table[rows, positions] = slots.int()
        batch = ForwardBatch(
            token_ids=self._rows.history[rows, positions],
            positions=positions,
            rope_lens=rope_lens,
            slots=slots,
            wanted=None,
            attention_plan=bucket.buffers.plan,
        )
        logits = self._model.logits(self._model.forward(batch, self._pool))
        greedy = self._greedy(logits, (self._rows.history, rows, positions))
        return DecodeOutput(logits, greedy.ids, greedy.bad)

    def _capture(self, bucket: _Bucket) -> None:
        """Run once outside (compiles kernels, settles allocations), then record. The inputs are those of this step:
        running it more than once writes the same values to the same places."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._compute(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            bucket.output = self._compute(bucket)
        self._memory = self._memory or graph.pool()
        bucket.graph = graph
