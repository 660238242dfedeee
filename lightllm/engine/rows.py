"""What the device knows of each running request: its tokens, its slots, and how long its prompt was.

    history[row, position]   token id                  [max_rows + 1, max_len + 1] int32
    table[row, position]     slot of the token's KV    [max_rows + 1, max_len + 1] int32

A step refers to rows and positions only; ids that were sampled on the device are already here when the next step
reads them. The last row belongs to nobody: padding writes there, and reads `NO_TOKEN` at its position 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm.engine.transfer import upload
from lightllm.kernels.ops.contracts import NO_TOKEN
from lightllm.protocol.plan import Int32, StepPlan

Int64 = NDArray[np.int64]


class RowTables:
    """Per-row state on the device, changed only in launch order."""

    def __init__(self, max_rows: int, max_len: int, spare_slot: int, device: torch.device) -> None:
        self._device = device
        self.spare_row = max_rows
        shape = (max_rows + 1, max_len + 1)
        self.history = torch.zeros(shape, dtype=torch.int32, device=device)
        self.history[self.spare_row, 0] = NO_TOKEN
        self.table = torch.full(shape, spare_slot, dtype=torch.int32, device=device)
        self._prompt_lens: Int64 = np.zeros(max_rows + 1, np.int64)
        self._to_write: list[_Writes] = []

    def update(self, plan: StepPlan) -> None:
        """Write the known tokens of rows that now belong to a request, and slots the prefix tree gave or replaced.

        What cannot be written for lack of memory is written with the next step's: a patch belongs to a request that
        may have no part in this one.
        """
        for opened in plan.opened:
            self._prompt_lens[opened.row] = opened.prompt_len
            self._note(self.history, opened.row, 0, opened.tokens)
        for patch in plan.patches:
            self._note(self.table, patch.row, patch.start, patch.slots)
        if not self._to_write:
            return
        arrays = [array for writes in self._to_write for array in writes.arrays()]
        tensors = upload(arrays, self._device)
        for writes, places, values in zip(self._to_write, tensors[::2], tensors[1::2], strict=True):
            writes.target.view(-1).scatter_(0, places, values)
        self._to_write = []

    def _note(self, target: Tensor, row: int, start: int, values: Int32) -> None:
        """Add to what is written, together where the order does not matter: as long as no row comes again."""
        latest = next((writes for writes in reversed(self._to_write) if writes.target is target), None)
        if latest is None or row in latest.rows:
            latest = _Writes(target)
            self._to_write.append(latest)
        latest.add(row, start, values)

    def prompt_lens(self, rows: NDArray[np.int32]) -> Int64:
        """Prompt lengths [S] of the given rows."""
        return self._prompt_lens[rows]


class _Writes:
    """Values for places of different rows of one tensor."""

    __slots__ = ("_values", "_where", "rows", "target")

    def __init__(self, target: Tensor) -> None:
        self.target = target
        self.rows: set[int] = set()
        self._where: list[Int64] = []
        self._values: list[Int32] = []

    def add(self, row: int, start: int, values: Int32) -> None:
        first = row * self.target.shape[1] + start
        self.rows.add(row)
        self._where.append(np.arange(first, first + len(values)))
        self._values.append(values)

    def arrays(self) -> tuple[Int64, Int32]:
        """Indices into the flat tensor [N], and the values [N]."""
        return np.concatenate(self._where), np.concatenate(self._values).astype(np.int32, copy=False)


class FlatTokens:
    """The host side of a step's flat run of tokens: for each of T tokens its row and position, [T] int64."""

    __slots__ = ("positions", "rope_lens", "rows")

    def __init__(self, plan: StepPlan, prompt_lens: Int64) -> None:
        lens = plan.lens.astype(np.int64)
        firsts = np.cumsum(lens) - lens
        self.rows: Int64 = np.repeat(plan.rows.astype(np.int64), lens)
        self.positions: Int64 = np.arange(int(lens.sum())) + np.repeat(plan.starts - firsts, lens)
        self.rope_lens: Int64 = np.maximum(self.positions + 1, np.repeat(prompt_lens, lens))


def last_tokens(plan: StepPlan) -> Int64:
    """Index in the flat run of each sequence's last token [S]."""
    return np.cumsum(plan.lens.astype(np.int64)) - 1
