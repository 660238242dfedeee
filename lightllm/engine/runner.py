"""The engine: runs step plans in the order they are launched and hands back results in the same order.

`launch` returns at once and `collect` waits: on a CPU the steps run on a thread of their own, so the host prepares
step n+1 while step n computes, exactly as it does beside a GPU.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightllm.device.device import Device
from lightllm.engine.rows import FlatTokens, RowTables, last_tokens, to_device
from lightllm.kernels.ops.contracts import KernelSet, SequenceLayout
from lightllm.kvcache.pool import KvPool
from lightllm.models.decoder import Decoder, ForwardBatch
from lightllm.protocol.plan import Int32, Logprobs, StepPlan, StepResult
from lightllm.sampling.sampler import LogprobTensors, Sampled, Sampler


@dataclass(frozen=True, slots=True)
class Ticket:
    """A launched step."""

    step: int
    future: Future[StepResult]


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
        threads: int | None = None,
    ) -> None:
        self._model = model
        self._pool = pool
        self._kernels = kernels
        self._sampler = sampler
        self._rows = rows
        self._device = device.torch_device
        self._prompt_logprobs: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1, "engine-device", _start_thread, (threads,))

    def launch(self, plan: StepPlan) -> Ticket:
        """Queue a step; the device works on it after those launched before."""
        return Ticket(plan.step, self._thread.submit(self._run, plan))

    def collect(self, ticket: Ticket) -> StepResult:
        """Wait for a step. Raises what the step raised."""
        return ticket.future.result()

    def close(self) -> None:
        """Wait for what was launched and end."""
        self._thread.shutdown(wait=True)

    @torch.inference_mode()
    def _run(self, plan: StepPlan) -> StepResult:
        begun = time.perf_counter()
        self._open_rows(plan)
        sampled = np.flatnonzero(plan.sampled)
        batch, wanted = self._batch(plan, sampled)
        lengths = (plan.starts + plan.lens)[sampled]
        sampling = self._sampler.prepare(plan.rows[sampled], lengths)
        hidden = self._model.forward(batch, self._pool)
        prompt_logprobs = self._score_prompts(plan, hidden, wanted)
        if not len(sampled):
            return StepResult(plan.step, _NONE, _NONE, {}, prompt_logprobs, {}, time.perf_counter() - begun)
        logits = self._model.logits(hidden[: len(sampled)])
        chosen = self._sampler.sample(logits, sampling, self._rows.history)
        rows = to_device(plan.rows[sampled].astype(np.int64), self._device)
        self._rows.history[rows, to_device(lengths.astype(np.int64), self._device)] = chosen.token_ids
        return self._result(plan, sampled, chosen, prompt_logprobs, begun)

    def _open_rows(self, plan: StepPlan) -> None:
        for opened in plan.opened:
            self._rows.open(opened)
            self._sampler.open(opened)
            if opened.params.prompt_logprobs is not None:
                self._prompt_logprobs[opened.row] = opened.params.prompt_logprobs
        for patch in plan.patches:
            self._rows.patch(patch)

    def _batch(self, plan: StepPlan, sampled: np.ndarray) -> tuple[ForwardBatch, list[np.ndarray]]:
        """The step's tensors, and for each sequence whose prompt is scored the flat indices of its tokens.

        The hidden states wanted are those of sampled tokens first, then those of scored prompts.
        """
        flat = FlatTokens(plan, self._rows.prompt_lens(plan.rows))
        last = last_tokens(plan)
        scored = [np.arange(last[s] - plan.lens[s] + 1, last[s] + 1) for s in np.flatnonzero(plan.prompt_logprobs)]
        rows, positions = to_device(flat.rows, self._device), to_device(flat.positions, self._device)
        self._rows.table[rows, positions] = to_device(plan.slots, self._device)  # type: ignore[arg-type]
        layout = SequenceLayout(plan.rows, plan.starts, plan.lens)
        batch = ForwardBatch(
            token_ids=self._rows.history[rows, positions],
            positions=positions,
            rope_lens=to_device(flat.rope_lens, self._device),
            slots=to_device(plan.slots.astype(np.int64), self._device),
            wanted=to_device(np.concatenate([last[sampled], *scored]), self._device),
            attention_plan=self._kernels.attention.plan(layout, self._rows.table),
        )
        return batch, scored

    def _score_prompts(self, plan: StepPlan, hidden: Tensor, scored: list[np.ndarray]) -> dict[int, Logprobs]:
        """Log-probabilities of the prompt tokens that this step's chunks predict."""
        result: dict[int, Logprobs] = {}
        first = int(plan.sampled.sum())
        for sequence, indices in zip(np.flatnonzero(plan.prompt_logprobs), scored, strict=True):
            row, start = int(plan.rows[sequence]), int(plan.starts[sequence])
            prompt_len = int(self._rows.prompt_lens(plan.rows[sequence : sequence + 1])[0])
            count = min(len(indices), prompt_len - 1 - start)
            targets = self._rows.history[row, start + 1 : start + 1 + count].long()
            logits = self._model.logits(hidden[first : first + count])
            tensors = self._sampler.prompt_logprobs(logits, targets, self._prompt_logprobs[row])
            result[int(sequence)] = _to_host(tensors, slice(None))
            first += len(indices)
        return result

    def _result(
        self,
        plan: StepPlan,
        sampled: np.ndarray,
        chosen: Sampled,
        prompt_logprobs: dict[int, Logprobs],
        begun: float,
    ) -> StepResult:
        bad = chosen.bad.cpu().numpy()
        failed = {int(sampled[i]): "the model gave no finite logits" for i in np.flatnonzero(bad)}
        logprobs: dict[int, Logprobs] = {}
        if chosen.logprobs is not None:
            for i, index in enumerate(chosen.logprob_rows):
                logprobs[int(index)] = _to_host(chosen.logprobs, slice(i, i + 1))
        return StepResult(
            plan.step,
            chosen.token_ids.cpu().numpy(),
            np.ones(len(sampled), np.int32),
            logprobs,
            prompt_logprobs,
            failed,
            time.perf_counter() - begun,
        )


_NONE: Int32 = np.empty(0, np.int32)


def _to_host(tensors: LogprobTensors, rows: slice) -> Logprobs:
    return Logprobs(
        tensors.chosen[rows].cpu().numpy(),
        tensors.ranks[rows].cpu().numpy(),
        tensors.top_ids[rows].cpu().numpy(),
        tensors.top_values[rows].cpu().numpy(),
    )


def _start_thread(threads: int | None) -> None:
    """OpenMP's thread count belongs to the calling thread, so the device thread sets its own."""
    if threads is not None:
        torch.set_num_threads(threads)
