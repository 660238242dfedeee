"""The engine: runs step plans in the order they are launched and hands back results in the same order.

`launch` returns at once and `collect` waits. On a GPU launching enqueues the step on the stream; on a CPU the step
runs on a thread of its own. Either way the host prepares step n+1 while step n computes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm.device.device import Device
from lightllm.engine.graphs import StepGraphs
from lightllm.engine.rows import FlatTokens, RowTables, last_tokens
from lightllm.engine.transfer import Download, Downloads, upload
from lightllm.kernels.ops.contracts import KernelSet, SequenceLayout
from lightllm.kvcache.pool import KvPool
from lightllm.models.decoder import Decoder, ForwardBatch
from lightllm.protocol.plan import Int32, Logprobs, StepPlan, StepResult
from lightllm.sampling.sampler import LogprobTensors, Sampled, Sampler, SamplingBatch

Int64 = NDArray[np.int64]

SCORED_LOGITS = 1 << 27
"""Logits of prompt tokens computed at a time: those of a whole chunk would take gigabytes that nobody measured."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A step whose work is under way, and where its results will be."""

    step: int
    sampled: Int64
    download: Download
    begun: float
    chosen: Sampled | None = None
    prompts: dict[int, LogprobTensors] = field(default_factory=dict)
    usual: bool = True
    """Nothing was captured on the way, which would count as the step's time."""

    def finish(self) -> StepResult:
        """Wait for the device and read what it gave."""
        self.download.wait()
        prompts = {sequence: _logprobs(tensors) for sequence, tensors in self.prompts.items()}
        elapsed = time.perf_counter() - self.begun
        if self.chosen is None:
            return StepResult(self.step, _NONE, _NONE, {}, prompts, {}, elapsed)
        token_ids, bad = self.chosen.chosen.numpy().copy()
        failed = {int(self.sampled[i]): "the model gave no finite logits" for i in np.flatnonzero(bad)}
        counts = np.ones(len(self.sampled), np.int32)
        logprobs: dict[int, Logprobs] = {}
        if self.chosen.logprobs is not None:
            for i, (index, count) in enumerate(zip(self.chosen.logprob_rows, self.chosen.logprob_counts, strict=True)):
                logprobs[int(index)] = _logprobs(self.chosen.logprobs, slice(i, i + 1), int(count))
        return StepResult(self.step, token_ids, counts, logprobs, prompts, failed, elapsed)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A launched step."""

    step: int
    work: Enqueued | Future[StepResult]

    def check(self) -> None:
        """Raise what launching raised, if it did."""
        if isinstance(self.work, Future) and self.work.done():
            self.work.result()


def failed_ticket(step: int, error: Exception) -> Ticket:
    """A step whose collection raises the error."""
    failed: Future[StepResult] = Future()
    failed.set_exception(error)
    return Ticket(step, failed)


class Engine:
    """A model, its KV pool and its sampler on one device."""

    def __init__(
        self,
        model: Decoder,
        pool: KvPool,
        kernels: KernelSet,
        sampler: Sampler,
        rows: RowTables,
        device: Device,
        *,
        threads: int | None = None,
        graphs: StepGraphs | None = None,
        rehearsals: Iterator[None] | None = None,
    ) -> None:
        """`rehearsals`: each of its steps prepares something, as `prepare_next` does."""
        self._model = model
        self._pool = pool
        self._kernels = kernels
        self._sampler = sampler
        self._rows = rows
        self._device = device.torch_device
        self._graphs = graphs
        self._downloads = Downloads(self._device, kernels.move)
        self._wanted_prompt_logprobs: dict[int, int] = {}
        self._finished = 0.0
        self._rehearsals = rehearsals or iter(())
        self._thread: ThreadPoolExecutor | None = None
        if not device.is_cuda:
            self._thread = ThreadPoolExecutor(1, "engine-device", _start_thread, (threads,))

    def launch(self, plan: StepPlan) -> Ticket:
        """Begin a step; the device works on it after those launched before."""
        if self._thread is not None:
            return Ticket(plan.step, self._thread.submit(lambda: self._enqueue(plan).finish()))
        try:
            with torch.cuda.device(self._device):
                return Ticket(plan.step, self._enqueue(plan))
        except Exception as error:  # told when it is collected, as on a CPU
            return failed_ticket(plan.step, error)

    def collect(self, ticket: Ticket) -> StepResult:
        """Wait for a step. Raises what the step raised. Its seconds begin when the one before it was done; 0 if it
        held up something that is done only once."""
        if isinstance(ticket.work, Future):
            return ticket.work.result()
        result = ticket.work.finish()
        finished = time.perf_counter()
        alone = finished - max(ticket.work.begun, self._finished) if ticket.work.usual else 0.0
        self._finished = finished
        return replace(result, seconds=alone)

    @torch.inference_mode()
    def prepare_next(self) -> bool:
        """Use idle time: prepare something that a later step would have to wait for. Returns False when all is ready.

        No step may be in flight.
        """
        try:
            for _ in self._rehearsals:
                return True
        except torch.OutOfMemoryError:
            pass  # then the first steps that need what is missing prepare it
        return self._graphs is not None and self._graphs.prepare_next()

    def close(self) -> None:
        """Wait for what was launched and end."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        else:
            with suppress(RuntimeError):  # of a device that is lost, which was told when it was
                torch.cuda.synchronize(self._device)

    def __del__(self) -> None:
        with suppress(Exception):  # one that was not made, or the interpreter's end
            if self._thread is None:  # pinned memory must not be given back while a kernel may still write to it
                self.close()

    @torch.inference_mode()
    def _enqueue(self, plan: StepPlan) -> Enqueued:
        begun, captures = time.perf_counter(), self._num_captures()
        self._open_rows(plan)
        sampled = np.flatnonzero(plan.sampled)
        lengths = plan.starts + plan.lens
        sampling = self._sampler.prepare(plan.rows[sampled], lengths[sampled])
        if self._graphs is not None and not plan.prompt_logprobs.any():
            done = self._enqueue_graph(plan, self._graphs, sampled, lengths, sampling, begun)
            if done is not None:
                return done
        scored = self._scored_tokens(plan)
        batch, places = self._batch(plan, sampled, scored)
        hidden = self._model.forward(batch, self._pool)
        download = self._downloads.open()
        prompts = self._score_prompts(plan, hidden[len(sampled) :], scored, download)
        chosen = self._sample(hidden, sampling, places, download) if len(sampled) else None
        download.seal()
        return Enqueued(plan.step, sampled, download, begun, chosen, prompts, self._num_captures() == captures)

    def _enqueue_graph(
        self,
        plan: StepPlan,
        graphs: StepGraphs,
        sampled: Int64,
        lengths: Int32,
        sampling: SamplingBatch,
        begun: float,
    ) -> Enqueued | None:
        """A step through a captured graph, if one fits; greedy ids of decodes come out of the graph itself."""
        layout = SequenceLayout(plan.rows, plan.starts, plan.lens)
        captures = graphs.num_captures
        chosen = None
        if len(sampled) == len(plan.slots):
            rope_lens = np.maximum(lengths, self._rows.prompt_lens(plan.rows))
            output = graphs.decode(layout, plan.slots, rope_lens)
            if output is None:
                return None
            download = self._downloads.open()
            if sampling.plain_greedy:
                host = download.add(output.chosen)[:, : len(sampled)]
                chosen = Sampled(host, None, sampling.logprob_rows, sampling.logprob_counts)
            else:
                likeliest = (output.chosen[:, : len(sampled)], output.best)
                chosen = self._sampler.sample(output.logits, sampling, self._rows.history, output.places, likeliest)
                chosen = _send_sampled(chosen, download)
        else:
            flat = FlatTokens(plan, self._rows.prompt_lens(plan.rows))
            chunks = graphs.chunks(layout, flat, plan.slots, last_tokens(plan)[sampled])
            if chunks is None:
                return None
            download = self._downloads.open()
            if len(sampled):
                chosen = self._sample(chunks.hidden, sampling, chunks.places, download)
        download.seal()
        return Enqueued(plan.step, sampled, download, begun, chosen, usual=graphs.num_captures == captures)

    def _num_captures(self) -> int:
        return 0 if self._graphs is None else self._graphs.num_captures

    def _open_rows(self, plan: StepPlan) -> None:
        self._rows.update(plan)
        for opened in plan.opened:
            self._sampler.open(opened)
            if opened.params.prompt_logprobs is not None:
                self._wanted_prompt_logprobs[opened.row] = opened.params.prompt_logprobs

    def _scored_tokens(self, plan: StepPlan) -> dict[int, Int64]:
        """For each sequence whose prompt is scored, flat indices of the tokens that predict another prompt token."""
        scored: dict[int, Int64] = {}
        last = last_tokens(plan)
        for sequence in np.flatnonzero(plan.prompt_logprobs):
            first = int(last[sequence] - plan.lens[sequence] + 1)
            prompt_len = int(self._rows.prompt_lens(plan.rows)[sequence])
            count = min(int(plan.lens[sequence]), prompt_len - 1 - int(plan.starts[sequence]))
            scored[int(sequence)] = np.arange(first, first + count)
        return scored

    def _batch(
        self, plan: StepPlan, sampled: Int64, scored: dict[int, Int64]
    ) -> tuple[ForwardBatch, tuple[Tensor, Tensor]]:
        """The step's tensors, and row and position [N] of each token after which one is sampled.

        The hidden states wanted are those of sampled tokens first, then those that score prompts, and then as many more
        as make a size of products that was met before.
        """
        flat = FlatTokens(plan, self._rows.prompt_lens(plan.rows))
        last = last_tokens(plan)[sampled]
        wanted = np.concatenate([last, *scored.values()])
        wanted = np.pad(wanted, (0, self._rounded(len(wanted)) - len(wanted)))
        slots = plan.slots.astype(np.int64)
        arrays = [flat.rows, flat.positions, flat.rope_lens, slots, wanted, flat.rows[last], flat.positions[last]]
        rows, positions, rope_lens, on_device, wanted_ids, *places = upload(arrays, self._device)
        table, attention = self._rows.table, self._kernels.attention
        ids = self._kernels.place_tokens(self._rows.history, table, rows, positions, on_device)
        alone = None
        if not scored and len(last) < len(slots):  # at most one token of a sequence: no key is read more often for it
            alone = SequenceLayout.of_tokens(flat.rows[last], flat.positions[last])
        batch = ForwardBatch(
            token_ids=ids,
            positions=positions,
            rope_lens=rope_lens,
            slots=on_device,
            wanted=wanted_ids,
            attention_plan=attention.plan(SequenceLayout(plan.rows, plan.starts, plan.lens), table),
            wanted_plan=None if alone is None else attention.plan(alone, table),
        )
        return batch, (places[0], places[1])

    def _sample(
        self, hidden: Tensor, sampling: SamplingBatch, places: tuple[Tensor, Tensor], download: Download
    ) -> Sampled:
        """Choose the next tokens of the first hidden states, those at the places [N], leave them on the device for the
        next step, and send them to the host."""
        count = len(places[0])
        logits = self._model.logits(hidden[: self._rounded(count)])[:count]
        chosen = self._sampler.sample(logits, sampling, self._rows.history, places)
        return _send_sampled(chosen, download)

    def _rounded(self, count: int) -> int:
        """As `StepGraphs.rounded`; the count itself where there are no graphs."""
        return self._graphs.rounded(count) if self._graphs is not None and count else count

    def _score_prompts(
        self, plan: StepPlan, hidden: Tensor, scored: dict[int, Int64], download: Download
    ) -> dict[int, LogprobTensors]:
        """Log-probabilities of the prompt tokens that this step's chunks predict."""
        result: dict[int, LogprobTensors] = {}
        for sequence, indices in scored.items():
            row, start = int(plan.rows[sequence]), int(plan.starts[sequence])
            targets = self._rows.history[row, start + 1 : start + 1 + len(indices)].long()
            mine, hidden = hidden[: len(indices)], hidden[len(indices) :]
            k = self._wanted_prompt_logprobs[row]
            rows = max(1, SCORED_LOGITS // self._model.spec.vocab_size)
            parts = [
                self._sampler.prompt_logprobs(self._model.logits(mine[i : i + rows]), targets[i : i + rows], k)
                for i in range(0, max(len(mine), 1), rows)
            ]
            result[sequence] = _send(LogprobTensors.joined(parts), download)
        return result


_NONE: Int32 = np.empty(0, np.int32)
_ALL = slice(None)


def _logprobs(tensors: LogprobTensors, rows: slice = _ALL, most: int | None = None) -> Logprobs:
    """Host tensors of P positions as arrays, with at most `most` likeliest tokens each."""
    parts = (tensors.chosen[rows], tensors.ranks[rows], tensors.top_ids[rows, :most], tensors.top_values[rows, :most])
    return Logprobs(*(part.numpy().copy() for part in parts))


def _send_sampled(chosen: Sampled, download: Download) -> Sampled:
    """The same outcome with its tensors on their way to the host."""
    logprobs = None if chosen.logprobs is None else _send(chosen.logprobs, download)
    return replace(chosen, chosen=download.add(chosen.chosen), logprobs=logprobs)


def _send(tensors: LogprobTensors, download: Download) -> LogprobTensors:
    add = download.add
    return LogprobTensors(add(tensors.chosen), add(tensors.ranks), add(tensors.top_ids), add(tensors.top_values))


def _start_thread(threads: int | None) -> None:
    """OpenMP's thread count belongs to the calling thread, so the device thread sets its own."""
    if threads is not None:
        torch.set_num_threads(threads)
