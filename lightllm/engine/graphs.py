"""CUDA graphs for steps: one launch instead of some hundred, so that the host never holds up the device.

A graph covers a bucket, so many tokens of so many sequences. A smaller step is padded with the spare row, whose KV
goes to the spare slot. What varies from step to step is written into one buffer that the graph reads:

    inputs [n] int32    rows T | positions T | rope lengths T | slots T | wanted S | their rows S | positions S
                        | items of attention | those for the wanted tokens, where these are not all
    decodes, T = S      ->  logits [S, vocab], likeliest ids and bad flags [2, S], noted in the history
    chunks, T > S       ->  hidden states [S, H] of the wanted tokens

Graphs are captured when they are needed, or before while there is nothing else to do, and share one memory pool.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm.engine.budget import is_out_of_memory
from lightllm.engine.rows import FlatTokens, RowTables
from lightllm.kernels.ops.contracts import KernelSet, Move, SequenceLayout
from lightllm.kvcache.pool import KvPool
from lightllm.models.decoder import Decoder, ForwardBatch

logger = logging.getLogger(__name__)

DECODE_SIZES = (
    *(1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128),
    *(144, 160, 176, 192, 208, 224, 240, 256, 320, 384, 448, 512),
)
CHUNK_SEQUENCES = (8, 32, 256, 512)
LAUNCH_OPERATIONS = 3e11
"""What a GPU could multiply and add while the host launches one layer's kernels (0.5 ms at 600 TFLOP/s): a graph of
chunks pays while a layer takes less than that."""
STAGING = 4
"""Host copies of the inputs in rotation: a copy under way is not overwritten."""
NUM_ARRAYS = 7
"""What precedes the items of attention in the inputs: see above."""
ALIGNMENT = 16
"""Each part of the inputs begins at a multiple of so many int32s: kernels load aligned arrays faster."""


class GraphAttention(Protocol):
    """An attention backend whose plan can be rewritten in place, and whose memory can be taken ahead."""

    def reserve(self, max_sequences: int, max_tokens: int) -> None: ...

    def buffer_size(self, max_sequences: int, max_tokens: int) -> int: ...

    def make_buffers(self, max_sequences: int, max_tokens: int, table: Tensor, memory: Tensor) -> Any:
        """Buffers whose `plan` goes to `run`; it is read from memory [`buffer_size`] int32."""
        ...

    def plan_into(self, buffers: Any, layout: SequenceLayout, host: NDArray[np.int32]) -> None:
        """Write to `host` what is to be in the memory for this step."""
        ...


@dataclass(frozen=True, slots=True)
class Size:
    """The most tokens and sequences of a bucket; equal numbers mean decodes only."""

    tokens: int
    sequences: int

    @property
    def decodes(self) -> bool:
        return self.tokens == self.sequences


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """What a graph of decodes leaves for N sequences, until it runs again: logits [N, vocab], rows and positions [N];
    `chosen` [2, S] is as in `Sampled`, with padding after the first N; best [N]: the largest logits."""

    logits: Tensor
    chosen: Tensor
    best: Tensor
    places: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class ChunkOutput:
    """Hidden states [S, H], of which the first N are those of the wanted tokens, until the graph runs again, and the
    rows and positions [N] of these."""

    hidden: Tensor
    places: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Step:
    """What is written into a bucket's inputs: rows, positions, rope lengths and slots of T tokens; of chunks the wanted
    tokens, their rows and positions [N]. `layouts` has the sequences and, of chunks, the wanted tokens alone."""

    layouts: tuple[SequenceLayout, ...]
    tokens: tuple[NDArray[Any], ...]
    wanted: tuple[NDArray[Any], ...] = ()


class _Inputs:
    """A bucket's inputs on the device, as views of one buffer, and the host copies they come from."""

    def __init__(
        self, size: Size, rows: RowTables, attention: GraphAttention, move: Move, device: torch.device
    ) -> None:
        attending = (size.tokens,) if size.decodes else (size.tokens, size.sequences)
        lengths = [size.tokens] * 4 + [size.sequences] * 3
        lengths += [attention.buffer_size(size.sequences, tokens) for tokens in attending]
        begins = np.cumsum([0] + [-(-length // ALIGNMENT) * ALIGNMENT for length in lengths])
        spans = [slice(int(begin), int(begin) + length) for begin, length in zip(begins, lengths, strict=False)]
        total = int(begins[-1])
        self._device = torch.zeros(total, dtype=torch.int32, device=device)
        self._hosts = [torch.zeros(total, dtype=torch.int32, pin_memory=True) for _ in range(STAGING)]
        self._views = [[host.numpy()[span] for span in spans] for host in self._hosts]
        self._turn = 0
        self._move = move
        parts = [self._device[span] for span in spans]
        self.rows, self.positions, self.rope_lens, self.slots, self.wanted, *places = parts[:NUM_ARRAYS]
        self.places = (places[0], places[1])
        self.attention = [
            attention.make_buffers(size.sequences, tokens, rows.table, memory)
            for tokens, memory in zip(attending, parts[NUM_ARRAYS:], strict=True)
        ]
        """For all tokens and, where these are not all, for the wanted ones."""

    def next_host(self) -> list[NDArray[np.int32]]:
        """The host views to fill for the next step: the arrays, then the items of each attention."""
        self._turn = (self._turn + 1) % STAGING
        return self._views[self._turn]

    def send(self) -> None:
        self._move(self._hosts[self._turn], self._device)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A captured graph, its inputs and what it leaves."""

    inputs: _Inputs
    graph: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]


class StepGraphs:
    """Runs steps through graphs where one fits: decodes of up to `max_sequences`, chunks of up to `max_tokens`."""

    def __init__(
        self, model: Decoder, pool: KvPool, kernels: KernelSet, rows: RowTables, max_sequences: int, max_tokens: int
    ) -> None:
        self._model = model
        self._pool = pool
        self._kernels = kernels
        self._attention = cast(GraphAttention, kernels.attention)
        self._rows = rows
        self._device = rows.table.device
        self._decodes = list(_decode_sizes(max_sequences))
        layer_tokens = int(LAUNCH_OPERATIONS / (2 * model.spec.layer_params))
        self._chunks = list(_chunk_sizes(min(max_tokens, layer_tokens), max_sequences))
        self._buckets: dict[Size, _Bucket | None] = {}
        self._asked_before: set[Size] = set()
        self._memory: Any = None
        self._full = False
        self.num_captures = 0
        """Captures tried so far; a step with one takes longer than others of its kind."""
        self._stream = torch.cuda.Stream()
        # Imported here, where there is a GPU: Triton is optional.
        from lightllm.kernels.triton.compiling import compiled_together
        from lightllm.kernels.triton.sampling_op import GreedyChooser

        self._compiled_together = compiled_together
        self._greedy = GreedyChooser(self._decodes[-1].sequences, self._device)

    def decode(
        self, layout: SequenceLayout, slots: NDArray[np.int32], rope_lens: NDArray[np.int64]
    ) -> DecodeOutput | None:
        """A step of S sequences of one token each, all sampled; None when there is no graph for so many."""
        count = len(layout.rows)
        size = next((size for size in self._decodes if size.sequences >= count), None)
        bucket = self._run(size, _Step((layout,), (layout.rows, layout.starts, rope_lens, slots)))
        if bucket is None:
            return None
        logits, chosen, best = bucket.outputs
        rows, positions = bucket.inputs.rows, bucket.inputs.positions
        return DecodeOutput(logits[:count], chosen, best[:count], (rows[:count], positions[:count]))

    def chunks(
        self,
        layout: SequenceLayout,
        flat: FlatTokens,
        slots: NDArray[np.int32],
        wanted: NDArray[np.int64],
    ) -> ChunkOutput | None:
        """A step of any T tokens, of which those at wanted [N <= S] are needed; None when there is no graph for it.

        The first step of a size gets None, too: capturing takes longer than a step, so it waits for a second one.
        """
        fits = (size for size in self._chunks if size.tokens >= len(slots) and size.sequences >= len(layout.rows))
        size = next(fits, None)
        if size is not None and size not in self._buckets and size not in self._asked_before:
            self._asked_before.add(size)
            return None
        tokens = (flat.rows, flat.positions, flat.rope_lens, slots)
        places = flat.rows[wanted], flat.positions[wanted]
        bucket = self._run(size, _Step((layout, SequenceLayout.of_tokens(*places)), tokens, (wanted, *places)))
        if bucket is None:
            return None
        rows, positions = bucket.inputs.places
        return ChunkOutput(bucket.outputs[0], (rows[: len(wanted)], positions[: len(wanted)]))

    def rounded(self, count: int) -> int:
        """The size of decodes that has room for so many tokens: products of that size have been computed before, of
        others the library may have to load its kernels first, which takes some milliseconds."""
        return next((size.sequences for size in self._decodes if size.sequences >= count), count)

    def prepare_next(self) -> bool:
        """Capture one graph that is missing. Returns False when there is none, or no room for more."""
        size = next((size for size in (*self._decodes, *self._chunks) if size not in self._buckets), None)
        if size is None or self._full:
            return False
        nothing = np.empty(0, np.int32)
        self._run(size, _Step((SequenceLayout(nothing, nothing, nothing),) * 2, (nothing,) * 4, (nothing,) * 3))
        return True

    def _run(self, size: Size | None, step: _Step) -> _Bucket | None:
        """Run a step through its bucket's graph, capturing it first if need be; None if there is no room for one."""
        if size is None:
            return None
        if size not in self._buckets:
            if self._full:
                return None
            self.num_captures += 1
            self._buckets[size] = self._capture(size, step)
        bucket = self._buckets[size]
        if bucket is not None:
            self._write(bucket.inputs, step)
            bucket.graph.replay()
        return bucket

    def _write(self, inputs: _Inputs, step: _Step) -> None:
        views = inputs.next_host()
        padding = (self._rows.spare_row, 0, 1, self._pool.total, 0, self._rows.spare_row, 0)
        for array, values, rest in zip(views, (*step.tokens, *step.wanted), padding, strict=False):
            array[: len(values)] = values
            array[len(values) :] = rest
        for buffers, layout, items in zip(inputs.attention, step.layouts, views[NUM_ARRAYS:], strict=False):
            self._attention.plan_into(buffers, layout, items)
        inputs.send()

    def _compute(self, size: Size, inputs: _Inputs) -> tuple[Tensor, ...]:
        """What the graph records."""
        rows = self._rows
        ids = self._kernels.place_tokens(rows.history, rows.table, inputs.rows, inputs.positions, inputs.slots)
        batch = ForwardBatch(
            token_ids=ids,
            positions=inputs.positions,
            rope_lens=inputs.rope_lens,
            slots=inputs.slots,
            wanted=None if size.decodes else inputs.wanted,
            attention_plan=inputs.attention[0].plan,
            wanted_plan=None if size.decodes else inputs.attention[1].plan,
        )
        hidden = self._model.forward(batch, self._pool)
        if not size.decodes:
            return (hidden,)
        logits = self._model.logits(hidden)
        greedy = self._greedy(logits, (rows.history, inputs.rows, inputs.positions))
        return logits, greedy.both, greedy.best

    def _capture(self, size: Size, step: _Step) -> _Bucket | None:
        """Compile the kernels, run once outside (settles allocations), then record. The inputs are those of a step to
        come or of none: running it more than once writes the same values to the same places."""
        try:
            inputs = _Inputs(size, self._rows, self._attention, self._kernels.move, self._device)
            self._write(inputs, step)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                with self._compiled_together():
                    self._compute(size, inputs)
                self._compute(size, inputs)
                graph, outputs = self._record(size, inputs)
        except Exception as error:
            torch.cuda.synchronize()  # raises when the device itself is lost
            self._full = self._full or is_out_of_memory(error)
            hint = "; lower --memory-fraction" if is_out_of_memory(error) else ""
            logger.warning("steps of %d tokens are launched without a graph: %s%s", size.tokens, error, hint)
            return None
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)
        return _Bucket(inputs, graph, outputs)

    def _record(self, size: Size, inputs: _Inputs) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
        try:
            outputs = self._compute(size, inputs)
        except BaseException:
            with suppress(RuntimeError):  # what went wrong may have ended the capture
                graph.capture_end()
            raise
        graph.capture_end()
        self._memory = self._memory or graph.pool()
        return graph, outputs


def logits_bytes(max_sequences: int, vocab_size: int, itemsize: int) -> int:
    """Bytes of the logits that the graphs of decodes keep."""
    return sum(size.sequences for size in _decode_sizes(max_sequences)) * vocab_size * itemsize


def _decode_sizes(max_sequences: int) -> Iterator[Size]:
    """Buckets of decodes up to so many sequences, as far as the list goes."""
    most = min(max_sequences, DECODE_SIZES[-1])
    for count in (*(size for size in DECODE_SIZES if size < most), most):
        yield Size(count, count)


def _chunk_sizes(max_tokens: int, max_sequences: int) -> Iterator[Size]:
    """Buckets of chunks up to so many tokens: four an octave, so that a fifth at most is padding, after a few small
    ones."""
    counts = [16, 32, 48, 64, *(quarter << octave for octave in range(4, 13) for quarter in (5, 6, 7, 8))]
    for tokens in (*(count for count in counts if count < max_tokens), max_tokens):
        for sequences in sorted({min(most, max_sequences) for most in CHUNK_SEQUENCES}):
            if sequences < tokens:
                yield Size(tokens, sequences)
