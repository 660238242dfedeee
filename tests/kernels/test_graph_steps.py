"""What a graph records, run without one: the inputs of a padded step give what an eager step gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightllm.engine import graphs
from lightllm.engine.rows import RowTables
from lightllm.kernels.ops.contracts import SequenceLayout
from lightllm.kernels.registry import reference_kernels
from lightllm.kernels.triton import backend
from lightllm.kernels.triton.sampling_op import GreedyChooser
from lightllm.kvcache.pool import KvPool
from lightllm.layers.rotary import RopeConfig
from lightllm.models.checkpoint import DummySource
from lightllm.models.decoder import Decoder, DecoderSpec, ForwardBatch

CPU = torch.device("cpu")
ROWS, LONGEST = 6, 64
SPEC = DecoderSpec(32, 2, 4, 2, 16, 48, 64, LONGEST, 1e-6, RopeConfig("default", 1e4, 16, 64, {}), windows=(None, 9))


@pytest.fixture
def step_graphs(monkeypatch: pytest.MonkeyPatch) -> graphs.StepGraphs:
    if torch.cuda.is_available():
        pytest.skip("where there is a GPU, tests/engine/test_gpu.py replays graphs")
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, pin_memory=False, **options: zeros(*size, **options))
    made: Any = object.__new__(graphs.StepGraphs)  # a GPU is needed to make one
    made._kernels = backend.triton_kernels(backend.Device(CPU, "none", (9, 0)), torch.float32, SPEC.head_shape)
    made._attention, made._device = made._kernels.attention, CPU
    made._model = Decoder(SPEC, DummySource(torch.float32, CPU), made._kernels, LONGEST, CPU)
    made._pool = KvPool(SPEC.kv_layout(torch.float32), ROWS * LONGEST, CPU)
    made._rows = RowTables(ROWS, LONGEST, ROWS * LONGEST, CPU)
    made._rows.table[:ROWS, :LONGEST] = torch.arange(ROWS * LONGEST, dtype=torch.int32).view(ROWS, LONGEST)
    ids = torch.randint(64, (ROWS, LONGEST), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    made._rows.history[:ROWS, :LONGEST] = ids
    made._greedy = GreedyChooser(8, CPU)
    for part in (*made._pool.keys, *made._pool.values):
        part.normal_(generator=torch.Generator().manual_seed(0))
    return made


def eager(step_graphs: Any, layout: SequenceLayout, wanted: np.ndarray | None) -> torch.Tensor:
    kernels, own = reference_kernels(torch.float32), step_graphs._rows
    model = Decoder(SPEC, DummySource(torch.float32, CPU), kernels, LONGEST, CPU)
    rows = torch.from_numpy(np.repeat(layout.rows, layout.lens)).long()
    spans = zip(layout.starts, layout.kv_lens, strict=True)
    positions = torch.from_numpy(np.concatenate([np.arange(*span) for span in spans]))
    batch = ForwardBatch(
        token_ids=own.history[rows, positions],
        positions=positions,
        rope_lens=positions + 1,
        slots=own.table[rows, positions],
        wanted=None if wanted is None else torch.from_numpy(wanted),
        attention_plan=kernels.attention.plan(layout, own.table),
    )
    return model.forward(batch, step_graphs._pool)


@torch.inference_mode()
# Padding of chunks is computed from whatever is in memory, which may overflow; rows do not depend on each other.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lens", [(1, 1, 1), (7, 1, 12)], ids=["decodes", "chunks"])
def test_padded_steps_give_what_eager_steps_give(step_graphs: Any, lens: tuple[int, ...]) -> None:
    decodes = max(lens) == 1
    size = graphs.Size(4, 4) if decodes else graphs.Size(32, 4)
    rows = step_graphs._rows
    inputs = graphs._Inputs(size, rows, step_graphs._attention, step_graphs._kernels.move, CPU)
    for turn in range(3):  # the same buffers, step after step
        int32 = np.int32
        layout = SequenceLayout(np.array([4, 0, 2], int32), np.array([20, 3, 9], int32) + turn, np.array(lens, int32))
        flat_rows = np.repeat(layout.rows, layout.lens)
        spans = zip(layout.starts, layout.kv_lens, strict=True)
        positions = np.concatenate([np.arange(*span, dtype=int32) for span in spans])
        tokens = (flat_rows, positions, positions + 1, rows.table[flat_rows, positions].numpy())
        wanted = np.cumsum(layout.lens)[1:] - 1  # of the first sequence nothing is sampled
        places = flat_rows[wanted], positions[wanted]
        alone = SequenceLayout.of_tokens(*places)
        step = graphs._Step((layout,), tokens) if decodes else graphs._Step((layout, alone), tokens, (wanted, *places))
        expected = eager(step_graphs, layout, None if decodes else wanted)
        step_graphs._write(inputs, step)
        found = step_graphs._compute(size, inputs)[0]
        expected = step_graphs._model.logits(expected) if decodes else expected
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-4, atol=1e-4)
