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
        self._to_write: list[tuple[Tensor, int, int, Int32]] = []

    def update(self, plan: StepPlan) -> None:
        """Write the known tokens of rows that now belong to a request, and slots the prefix tree gave or replaced.

        What cannot be written for lack of memory is written with the next step's: a patch belongs to a request that
        may have no part in this one.
        """
        for opened in plan.opened:
            self._prompt_lens[opened.row] = opened.prompt_len
            self._to_write.append((self.history, opened.row, 0, opened.tokens))
        self._to_write += [(self.table, patch.row, patch.start, patch.slots) for patch in plan.patches]
        if not self._to_write:
            return
        tensors = upload([values.astype(np.int64) for *_, values in self._to_write], self._device)
        for (target, row, start, _), values in zip(self._to_write, tensors, strict=True):
            target[row, start : start + len(values)] = values
        self._to_write = []

    def prompt_lens(self, rows: NDArray[np.int32]) -> Int64:
        """Prompt lengths [S] of the given rows."""
        return self._prompt_lens[rows]


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
