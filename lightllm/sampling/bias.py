"""logit_bias: a number added to the logits of single tokens; it cannot bring a banned token back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightllm.kernels.transfer import Transfer, Uploaded
from lightllm.protocol.plan import Float32, OpenedRow
from lightllm.sampling.stage import HostBatch, Int64, LogitsEdit, PerRow, flat_positions, ids_within


class LogitBias:
    """The stage."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._biases: PerRow[tuple[Int64, Float32]] = PerRow(max_rows)

    def open(self, opened: OpenedRow) -> None:
        bias = opened.params.logit_bias or {}
        ids = ids_within(list(bias), self._vocab_size)
        values = np.array([bias[int(token)] for token in ids], np.float32)
        self._biases.set(opened.row, (ids, values) if len(ids) else None)

    def concerns(self, row: int) -> bool:
        return self._biases.has(row)

    def plan(self, batch: HostBatch, transfer: Transfer) -> LogitsEdit | None:
        indices, biases = self._biases.find(batch.rows)
        if not biases:
            return None
        where = flat_positions(indices, [ids for ids, _ in biases], self._vocab_size)
        values = np.concatenate([values for _, values in biases])
        return _AddBias(transfer.add(where), transfer.add(values))


@dataclass(frozen=True, slots=True)
class _AddBias:
    """Adds values [Q] at distinct positions [Q] of the flattened logits."""

    where: Uploaded
    values: Uploaded

    def apply(self, logits: Tensor, history: Tensor) -> None:
        logits.view(-1).index_add_(0, self.where.tensor, self.values.tensor)
