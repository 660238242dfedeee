"""What the device knows of each running request: its tokens, its slots, and how long its prompt was.

    history[row, position]   token id                  [max_rows, max_len] int32
    table[row, position]     slot of the token's KV    [max_rows, max_len] int32

A step refers to rows and positions only; ids that were sampled on the device are already here when the next step
reads them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm.protocol.plan import OpenedRow, StepPlan, TablePatch

Int64 = NDArray[np.int64]


class RowTables:
    """Per-row state on the device, changed only in launch order."""

    def __init__(self, max_rows: int, max_len: int, spare_slot: int, device: torch.device) -> None:
        self._device = device
        self.history = torch.zeros(max_rows, max_len + 1, dtype=torch.int32, device=device)
        self.table = torch.full((max_rows, max_len + 1), spare_slot, dtype=torch.int32, device=device)
        self._prompt_lens: Int64 = np.zeros(max_rows, np.int64)

    def open(self, opened: OpenedRow) -> None:
        """Write the known tokens of a row that now belongs to a request."""
        tokens = torch.from_numpy(opened.tokens).to(self._device, non_blocking=True)
        self.history[opened.row, : len(opened.tokens)] = tokens
        self._prompt_lens[opened.row] = opened.prompt_len

    def patch(self, patch: TablePatch) -> None:
        """Write slots that the prefix tree gave or replaced."""
        slots = torch.from_numpy(patch.slots).to(self._device, non_blocking=True)
        self.table[patch.row, patch.start : patch.start + len(patch.slots)] = slots

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


def to_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """A host array on the device, asynchronously where it can be."""
    return torch.from_numpy(array).to(device, non_blocking=True)
