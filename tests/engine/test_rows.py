"""Per-row state on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightllm.engine import rows as module
from lightllm.engine.rows import RowTables
from lightllm.protocol.plan import OpenedRow, StepPlan, TablePatch
from lightllm.protocol.sampling_params import SamplingParams


def make_plan(opened: tuple[OpenedRow, ...], patches: tuple[TablePatch, ...]) -> StepPlan:
    nothing = np.empty(0, np.int32)
    none = np.empty(0, np.bool_)
    return StepPlan(0, nothing, nothing, nothing, nothing, none, none, opened, patches)


def row_of(row: int, *tokens: int) -> OpenedRow:
    return OpenedRow(row, np.array(tokens, np.int32), len(tokens), SamplingParams(), 0, ())


def test_what_had_no_memory_is_written_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = RowTables(2, 8, spare_slot=99, device=torch.device("cpu"))
    upload = module.upload

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "upload", fail)
    lost = TablePatch(1, 2, np.array([7, 8], np.int32))
    with pytest.raises(torch.OutOfMemoryError):
        tables.update(make_plan((row_of(0, 3, 4, 5),), (lost,)))
    monkeypatch.setattr(module, "upload", upload)
    tables.update(make_plan((row_of(0, 6),), (TablePatch(1, 3, np.array([9], np.int32)),)))
    assert tables.history[0, :3].tolist() == [6, 4, 5], "in the order of the steps"
    assert tables.table[1].tolist() == [99, 99, 7, 9, 99, 99, 99, 99, 99]
    tables.table.fill_(99)
    tables.update(make_plan((), ()))
    assert (tables.table == 99).all(), "written once"


def test_later_patches_of_a_row_win_and_rows_do_not_mix() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        tables = RowTables(5, 12, spare_slot=99, device=torch.device("cpu"))
        history, table = tables.history.clone(), tables.table.clone()
        for _ in range(3):
            opened = tuple(row_of(int(row), *random.integers(1, 50, 1 + row)) for row in random.permutation(5)[:3])
            patches = tuple(
                TablePatch(int(row), int(start), random.integers(0, 90, 4, dtype=np.int32))
                for row, start in random.integers(0, 5, (6, 2))
            )
            tables.update(make_plan(opened, patches))
            for first in opened:
                history[first.row, : len(first.tokens)] = torch.from_numpy(first.tokens)
            for patch in patches:
                table[patch.row, patch.start : patch.start + 4] = torch.from_numpy(patch.slots)
        assert torch.equal(tables.history, history) and torch.equal(tables.table, table)
