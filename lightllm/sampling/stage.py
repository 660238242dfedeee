"""The seam of everything that changes logits before a token is chosen: plan on the host, apply on the device.

A stage keeps what each row asked for. For a batch it says on the host whether there is anything to do, and what; the
device then does it without being asked back. A stage that nobody in the batch uses costs one lookup.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightllm.kernels.transfer import Transfer
from lightllm.protocol.plan import Int32, OpenedRow

Int64 = NDArray[np.int64]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class HostBatch:
    """What the host knows of a batch: the rows [N], and how many tokens of each are known [N]."""

    rows: Int32
    lengths: Int32


class LogitsEdit(Protocol):
    """One stage's work on one batch."""

    def apply(self, logits: Tensor, history: Tensor) -> None:
        """Change contiguous float32 logits [N, vocab] in place; `history` [max_rows, max_len] int32 has the tokens.

        Must not make the host wait for the device, and must treat each row as if it were alone.
        """


class LogitsStage(Protocol):
    """One feature that changes logits."""

    def open(self, opened: OpenedRow) -> None:
        """A row begins to belong to a request; what the stage knew of the row is forgotten."""

    def concerns(self, row: int) -> bool:
        """Whether the request that the row belongs to uses this feature."""

    def plan(self, batch: HostBatch, transfer: Transfer) -> LogitsEdit | None:
        """The work for this batch, its arrays added to `transfer`; None when there is nothing to do."""


class PerRow(Generic[Value]):
    """An optional value for each row, found quickly for a batch in which most rows have none."""

    def __init__(self, max_rows: int) -> None:
        self._present = np.zeros(max_rows, np.bool_)
        self._values: dict[int, Value] = {}

    def set(self, row: int, value: Value | None) -> None:
        self._present[row] = value is not None
        self._values.pop(row, None)
        if value is not None:
            self._values[row] = value

    def has(self, row: int) -> bool:
        return bool(self._present[row])

    def find(self, rows: Int32) -> tuple[Int64, list[Value]]:
        """Indices [F] into `rows` of those that have a value, and the values."""
        indices = np.flatnonzero(self._present[rows])
        return indices, [self._values[int(rows[i])] for i in indices]


def ids_within(ids: tuple[int, ...] | list[int], vocab_size: int) -> Int64:
    """The ids that the model has; it can never produce the others."""
    array = np.asarray(ids, np.int64)
    return array[(array >= 0) & (array < vocab_size)]


def flat_positions(indices: Int64, ids: list[Int64], vocab_size: int) -> Int64:
    """Positions in flattened logits [N * vocab] of ids[j], which belong to batch index indices[j]."""
    return np.concatenate([index * vocab_size + own for index, own in zip(indices, ids, strict=True)])
