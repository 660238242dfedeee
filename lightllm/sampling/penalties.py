"""Repetition, presence and frequency penalties.

    repetition (prompt and output; Keskar et al., CTRL, section 4.1, as in Transformers)
        logit > 0 ? logit / r : logit * r        for each token seen
    presence and frequency (output only, as in the OpenAI API)
        logit - presence * [count > 0] - frequency * count

There is no state beside the history: which tokens were seen, and how often, is read from it at each step. That costs
work for the known tokens and not for the vocabulary, needs no memory between steps, and is right by construction for
a row that was preempted and opened again, or whose last tokens were taken back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightllm.kernels.transfer import Transfer, Uploaded
from lightllm.protocol.plan import OpenedRow
from lightllm.sampling.stage import HostBatch, LogitsEdit, PerRow


@dataclass(frozen=True, slots=True)
class _Penalty:
    prompt_len: int
    repetition: float
    presence: float
    frequency: float


class Penalties:
    """The stage."""

    def __init__(self, max_rows: int) -> None:
        self._penalties: PerRow[_Penalty] = PerRow(max_rows)

    def open(self, opened: OpenedRow) -> None:
        params = opened.params
        penalty = _Penalty(
            opened.prompt_len, params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        )
        idle = (penalty.repetition, penalty.presence, penalty.frequency) == (1.0, 0.0, 0.0)
        self._penalties.set(opened.row, None if idle else penalty)

    def concerns(self, row: int) -> bool:
        return self._penalties.has(row)

    def plan(self, batch: HostBatch, transfer: Transfer) -> LogitsEdit | None:
        indices, penalties = self._penalties.find(batch.rows)
        if not penalties:
            return None
        lengths = batch.lengths[indices].astype(np.int64)
        strengths = [(p.repetition, p.presence, p.frequency) for p in penalties]
        return _PenaltyEdit(
            indices=transfer.add(indices),
            rows=transfer.add(batch.rows[indices].astype(np.int64)),
            lengths=transfer.add(lengths),
            begins=transfer.add(np.cumsum(lengths) - lengths),
            prompt_lens=transfer.add(np.array([p.prompt_len for p in penalties], np.int64)),
            strengths=transfer.add(np.array(strengths, np.float32)),
            num_tokens=int(lengths.sum()),
            counted=any(p.presence or p.frequency for p in penalties),
        )


@dataclass(frozen=True, slots=True)
class _PenaltyEdit:
    """R penalised rows with T known tokens, taken as one flat run, row after row.

    indices [R] in the batch, rows [R] of the history, lengths [R], begins [R] of the rows in the run, prompt_lens [R],
    strengths [R, 3]: repetition, presence, frequency.
    """

    indices: Uploaded
    rows: Uploaded
    lengths: Uploaded
    begins: Uploaded
    prompt_lens: Uploaded
    strengths: Uploaded
    num_tokens: int
    counted: bool

    def apply(self, logits: Tensor, history: Tensor) -> None:
        vocab_size = logits.shape[1]
        owner, position = self._owners()
        ids = history[self.rows.tensor[owner], position].long()  # [T]
        flat = self.indices.tensor[owner] * vocab_size + ids
        strengths = self.strengths.tensor[owner]  # [T, 3]
        seen = logits.view(-1)[flat]
        penalised = torch.where(seen > 0, seen / strengths[:, 0], seen * strengths[:, 0])
        if self.counted:
            counts = self._output_counts(owner, position, ids, vocab_size)
            penalised -= strengths[:, 1] * (counts > 0) + strengths[:, 2] * counts
        # A token that was seen twice gets the same value twice.
        logits.view(-1)[flat] = penalised

    def _owners(self) -> tuple[Tensor, Tensor]:
        """For each token of the run: which of the R rows it belongs to [T], and its position there [T]."""
        rows = torch.arange(len(self.rows.array), device=self.rows.tensor.device)
        owner = torch.repeat_interleave(rows, self.lengths.tensor, output_size=self.num_tokens)
        position = torch.arange(self.num_tokens, device=rows.device) - self.begins.tensor[owner]
        return owner, position

    def _output_counts(self, owner: Tensor, position: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
        """How often each token of the run appears in its row's output [T] int32."""
        slots = owner * vocab_size + ids
        generated = (position >= self.prompt_lens.tensor[owner]).int()
        counts = torch.zeros(len(self.rows.array) * vocab_size, dtype=torch.int32, device=ids.device)
        return counts.index_add_(0, slots, generated)[slots]
