"""The sampler: logits in, tokens out.

    raw logits ──▶ log-probabilities of the rows that want them
        │
    grammar masks, allowed tokens, bad words, min_tokens ──▶ penalties ──▶ bias        stages, in place
        │
    greedy: argmax, ties by the lowest id        else: temperature, min_p, top_k, top_p, draw

What a row needs is decided on the host, from its parameters and its length; nothing on the device is ever asked back,
so the same code runs ahead of a GPU. Each row's outcome depends on that row alone, never on what shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from lightllm.kernels.transfer import Transfer, Uploaded
from lightllm.protocol.plan import Int32, OpenedRow
from lightllm.sampling.bad_words import BadWords
from lightllm.sampling.bans import AllowedTokens, MinTokens
from lightllm.sampling.bias import LogitBias
from lightllm.sampling.draw import DrawParameters, DrawPlan, draw
from lightllm.sampling.grammar import TokenMasks, apply_masks
from lightllm.sampling.logprobs import LogprobTensors, score
from lightllm.sampling.penalties import Penalties
from lightllm.sampling.stage import HostBatch, LogitsEdit, LogitsStage
from lightllm.sampling.weights import MAX_VOCAB_SIZE

__all__ = ["LogprobTensors", "Sampled", "Sampler", "SamplingBatch", "TokenMasks"]

Places = tuple[Tensor, Tensor]
"""Row of the history [N] and position [N] of each row's last known token, on the device; the chosen one follows it."""

Likeliest = tuple[Tensor, Tensor]
"""The likeliest token ids and bad flags [2, N] int32, noted in the history already, and the largest logits [N]."""

Choose = Callable[[Tensor, DrawPlan | None, Tensor, Places | None, Likeliest | None], Tensor]
"""Edited logits [N, vocab], which may be overwritten, the draw, the history with the places where ids are noted, and
what is known of the likeliest: token ids and bad flags [2, N] int32."""

NO_LOGPROBS = -1


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """All that the host decides for one batch of N rows, its arrays on their way to the device.

    `logprob_rows` [L]: indices in the batch of the rows that want log-probabilities; `logprob_counts` [L]: how many
    of the likeliest tokens each of them asked for.
    """

    edits: tuple[LogitsEdit, ...]
    draw: DrawPlan | None
    logprob_rows: Int32
    logprob_counts: Int32
    logprob_indices: Uploaded | None

    @property
    def plain_greedy(self) -> bool:
        """Every row takes its likeliest token as the logits are, and nobody wants log-probabilities."""
        return self.draw is None and not self.edits and self.logprob_indices is None


_PLAIN = SamplingBatch((), None, np.empty(0, np.int32), np.empty(0, np.int32), None)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The outcome of a batch, tensors on the device.

    chosen [2, N] int32: token ids, and flags of bad rows, which after the stages have a NaN, a positive infinity or no
    token left, and whose id 0 means nothing. `logprobs`, when some row wants them, has one entry for each of
    `logprob_rows` and as many likeliest tokens as the largest of `logprob_counts`: a reader takes the first
    logprob_counts[i].
    """

    chosen: Tensor
    logprobs: LogprobTensors | None
    logprob_rows: Int32
    logprob_counts: Int32

    @property
    def token_ids(self) -> Tensor:
        return self.chosen[0]

    @property
    def bad(self) -> Tensor:
        return self.chosen[1] != 0

    def map(self, function: Callable[[Tensor], Tensor]) -> Sampled:
        """The same with `function` applied to each tensor, for instance a copy to the host."""
        return replace(
            self,
            chosen=function(self.chosen),
            logprobs=self.logprobs and self.logprobs.map(function),
        )


class Sampler:
    """Sampling parameters of the rows of one device, and the pipeline that applies them.

    `open` and `prepare` are host work, in launch order; `sample` queues work on the device and does not wait for it.
    """

    def __init__(self, *, max_rows: int, vocab_size: int, device: torch.device) -> None:
        assert vocab_size <= MAX_VOCAB_SIZE, f"vocabulary of {vocab_size}, at most {MAX_VOCAB_SIZE}"
        self._device = device
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        kernels = device.type == "cuda" and find_spec("triton") is not None
        self._kernels = _Kernels(max_rows, device) if kernels else None
        self._choose: Choose = self._kernels or _choose
        self._stages: tuple[LogitsStage, ...] = (
            AllowedTokens(max_rows, vocab_size),
            BadWords(max_rows, vocab_size),
            MinTokens(max_rows, vocab_size),
            Penalties(max_rows),
            LogitBias(max_rows, vocab_size),
        )
        self._draws = DrawParameters(max_rows, vocab_size, device)
        self._logprobs = np.full(max_rows, NO_LOGPROBS, np.int32)
        self._plain = np.zeros(max_rows, np.bool_)

    def open(self, opened: OpenedRow) -> None:
        """A row begins to belong to a request, new or preempted before."""
        for stage in self._stages:
            stage.open(opened)
        self._draws.open(opened)
        wanted = opened.params.logprobs
        self._logprobs[opened.row] = NO_LOGPROBS if wanted is None else wanted
        changed = any(stage.concerns(opened.row) for stage in self._stages)
        self._plain[opened.row] = opened.params.greedy and wanted is None and not changed

    def prepare(self, rows: Int32, lengths: Int32) -> SamplingBatch:
        """Plan a batch of rows [N], of each of which lengths [N] tokens will be known when it is sampled."""
        if self._plain[rows].all():
            return _PLAIN
        batch = HostBatch(rows, lengths)
        transfer = Transfer(self._device)
        edits = [stage.plan(batch, transfer) for stage in self._stages]
        counts = self._logprobs[rows]
        scored = np.flatnonzero(counts != NO_LOGPROBS)
        prepared = SamplingBatch(
            edits=tuple(edit for edit in edits if edit is not None),
            draw=self._draws.plan(batch, transfer),
            logprob_rows=scored.astype(np.int32),
            logprob_counts=counts[scored],
            logprob_indices=transfer.add(scored) if len(scored) else None,
        )
        transfer.send()
        return prepared

    def rehearsals(self, history: Tensor, dtype: torch.dtype) -> Iterator[None]:
        """Compiles, some at each step of the iteration, the kernels for every kind of batch with logits of `dtype`,
        so that no later batch waits for them; nothing where there are no kernels."""
        if self._kernels is not None:
            for kind in dict.fromkeys((dtype, torch.float32)):  # edited logits are float32
                yield from self._kernels.rehearsals(self._max_rows, self._vocab_size, kind, history)

    @torch.no_grad()
    def sample(
        self,
        logits: Tensor,
        batch: SamplingBatch,
        history: Tensor,
        places: Places | None = None,
        likeliest: Likeliest | None = None,
        masks: TokenMasks | None = None,
    ) -> Sampled:
        """Choose a token for each row of logits [N, vocab] (any float dtype; may be overwritten).

        `history` [max_rows, max_len] int32 holds each row's known tokens; the chosen ones are noted in it if `places`
        says where. `likeliest`, if known, is of the logits as they are, and may be overwritten. `masks` are this
        step's grammar masks.
        """
        unchanged = batch.draw is None and not batch.edits and masks is None
        if batch.edits or masks is not None or self._kernels is None:
            logits = logits.float().contiguous()
        raw = _raw_rows(logits, batch, unchanged)
        # Masks and bans all set logits to minus infinity, so their order among themselves does not matter.
        if masks is not None and len(masks.indices):
            apply_masks(logits, masks, Transfer(self._device))
        for edit in batch.edits:
            edit.apply(logits, history)
        known = None if batch.edits or masks is not None else likeliest
        chosen = self._choose(logits, batch.draw, history, places, known)
        logprobs = None
        if raw is not None and batch.logprob_indices is not None:
            logprobs = score(raw, chosen[0, batch.logprob_indices.tensor], int(batch.logprob_counts.max()))
        return Sampled(chosen, logprobs, batch.logprob_rows, batch.logprob_counts)

    @torch.no_grad()
    def prompt_logprobs(self, logits: Tensor, targets: Tensor, k: int) -> LogprobTensors:
        """Scores of prompt tokens targets [P] under logits [P, vocab], with the k likeliest; -1: whole vocabulary."""
        return score(logits, targets, k)


def _raw_rows(logits: Tensor, batch: SamplingBatch, unchanged: bool) -> Tensor | None:
    """Logits [L, vocab] of the rows that want log-probabilities, safe from later changes."""
    if batch.logprob_indices is None:
        return None
    if unchanged and len(batch.logprob_rows) == len(logits):
        return logits
    return logits.index_select(0, batch.logprob_indices.tensor)


class _Kernels:
    """Does the same as `_choose` in a few launches, and reads logits of any float dtype."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        from lightllm.kernels.triton.sampling_op import Chooser

        self._chooser = Chooser(max_rows, device)

    def __call__(
        self,
        logits: Tensor,
        plan: DrawPlan | None,
        history: Tensor,
        places: Places | None,
        likeliest: Likeliest | None = None,
    ) -> Tensor:
        from lightllm.kernels.triton.sampling_op import DrawInputs, Greedy

        noted = None if places is None else (history, *places)
        known = None if likeliest is None else Greedy(*likeliest)
        if plan is None:
            return self._chooser(logits, None, noted, known)
        inputs = DrawInputs(
            indices=None if plan.indices is None else plan.indices.tensor,
            temperature=plan.temperature.tensor,
            min_p=plan.min_p.tensor,
            top_k=plan.top_k.tensor,
            top_p=plan.top_p.tensor,
            uniforms=plan.uniforms.tensor,
            filtered=plan.filtered,
        )
        return self._chooser(logits, inputs, noted, known)

    def rehearsals(self, max_rows: int, vocab_size: int, dtype: torch.dtype, history: Tensor) -> Iterator[None]:
        from lightllm.kernels.triton.compiling import compiled_together
        from lightllm.kernels.triton.sampling_op import REHEARSED_ROWS

        for num_rows in sorted({min(count, max_rows) for count in REHEARSED_ROWS}):
            with compiled_together():
                self._chooser.rehearse(num_rows, vocab_size, dtype, history)
            yield


def _choose(
    logits: Tensor, plan: DrawPlan | None, history: Tensor, places: Places | None, likeliest: Likeliest | None = None
) -> Tensor:
    """Token ids and bad flags [2, N] int32 from edited logits [N, vocab], which are overwritten."""
    ids, best = _argmax(logits)
    bad = ~best.isfinite()
    if plan is not None and plan.indices is None:
        ids = draw(logits, best[:, None], plan)
    elif plan is not None and plan.indices is not None:
        drawn = plan.indices.tensor
        ids = ids.index_copy(0, drawn, draw(logits[drawn], best[drawn, None], plan))
    chosen = torch.stack([ids.masked_fill(bad, 0).int(), bad.int()])
    if places is not None:
        rows, positions = places
        history[rows, positions + 1] = chosen[0]
    return chosen


def _argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Ids [N] of the largest logits (the lowest such id), and their values [N]; a NaN counts as the largest."""
    # On a CPU numpy's argmax is vectorised; torch's takes ten times as long.
    ids = logits.argmax(dim=1) if logits.is_cuda else torch.from_numpy(logits.detach().numpy().argmax(axis=1))
    return ids, logits.gather(1, ids[:, None]).squeeze(1)
