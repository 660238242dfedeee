"""The last block computes the wanted tokens alone: what they are, and what is stored, must not depend on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightllm.kernels.ops.contracts import SequenceLayout
from lightllm.kernels.registry import reference_kernels
from lightllm.kvcache.pool import KvPool
from lightllm.layers.rotary import RopeConfig
from lightllm.models.checkpoint import DummySource
from lightllm.models.decoder import Decoder, DecoderSpec, ForwardBatch

CPU = torch.device("cpu")
SEQUENCES, LONGEST = 4, 128
ROPES = {
    "default": RopeConfig("default", 1e4, 8, 32, {}),
    "dynamic": RopeConfig("dynamic", 1e4, 8, 32, {"factor": 4.0}),
}
WANTED = {
    "last tokens": lambda last: last,
    "none": lambda last: last[:0],
    "one": lambda last: last[2:3],
    "many of one sequence, and again": lambda last: np.concatenate([last, np.arange(5), [0, 0]]),
}


def make_model(windows: tuple[int | None, ...], rope: str, bias: bool) -> Decoder:
    sizes = (32, len(windows), 4, 2, 8, 48, 64, LONGEST, 1e-6)
    given = {"qkv_bias": bias, "output_bias": bias, "ffn_bias": bias, "head_norms": bias, "windows": windows}
    spec = DecoderSpec(*sizes, ROPES[rope], **given)
    return Decoder(spec, DummySource(torch.float32, CPU), reference_kernels(torch.float32), LONGEST, CPU)


@torch.inference_mode()
@pytest.mark.parametrize("choose", WANTED.values(), ids=list(WANTED))
@pytest.mark.parametrize("windows", [(None,), (None, 9), (5, 5)], ids=str)
@pytest.mark.parametrize(("rope", "bias"), [("default", False), ("dynamic", True)])
def test_with_a_plan_of_their_own_and_without(windows, rope, bias, choose):
    model, attention = make_model(windows, rope, bias), reference_kernels(torch.float32).attention
    rng = np.random.default_rng(len(windows))
    starts = rng.integers(0, 30, SEQUENCES).astype(np.int32)
    lens = np.array([1, 17, 1, 40], np.int32)
    table = torch.arange(SEQUENCES * LONGEST, dtype=torch.int32).view(SEQUENCES, LONGEST)
    rows = np.repeat(np.arange(SEQUENCES), lens)
    positions = np.concatenate([np.arange(start, start + count) for start, count in zip(starts, lens, strict=True)])
    wanted = choose(np.cumsum(lens) - 1).astype(np.int64)
    batch = ForwardBatch(
        token_ids=torch.from_numpy(rng.integers(0, 64, len(rows))),
        positions=torch.from_numpy(positions),
        rope_lens=torch.from_numpy(np.maximum(positions + 1, 50)),
        slots=table[rows, positions],
        wanted=torch.from_numpy(wanted),
        attention_plan=attention.plan(SequenceLayout(np.arange(SEQUENCES, dtype=np.int32), starts, lens), table),
    )
    alone = attention.plan(SequenceLayout.of_tokens(rows[wanted], positions[wanted]), table)
    results, pools = [], []
    for given in (replace(batch, wanted=None), batch, replace(batch, wanted_plan=alone)):
        pools.append(KvPool(model.spec.kv_layout(torch.float32), SEQUENCES * LONGEST, CPU))
        for part in (*pools[-1].keys, *pools[-1].values):
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
        results.append(model.forward(given, pools[-1]))
    everything, selected, own = results
    assert len(selected) == len(own) == len(wanted)
    torch.testing.assert_close(selected, everything[batch.wanted], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own, everything[batch.wanted], rtol=1e-5, atol=1e-5)
    for pool in pools[1:]:
        for mine, expected in zip((*pool.keys, *pool.values), (*pools[0].keys, *pools[0].values), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
