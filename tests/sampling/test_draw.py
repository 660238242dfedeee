"""The random draw: its distribution, its seeds, and that nothing else in a batch changes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightllm.sampling.uniforms import GOLDEN, _hash, uniforms
from lightllm.sampling.weights import WEIGHT_BITS, largest_threshold, weigh

from .desk import Desk

CHI_SQUARE_LIMIT = 6.0
"""Standard deviations: chance exceeds it about once in 10**8 runs, and the seeds are fixed anyway."""


def excess(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Chi-square of counts against probabilities, in standard deviations from its expectation."""
    expected = probabilities * counts.sum()
    degrees = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


def test_uniforms_are_uniform_and_independent() -> None:
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200))
    values = uniforms(seeds.ravel(), positions.ravel())
    assert values.min() >= 0 and values.max() < 1
    assert len(np.unique(values)) == len(values)
    assert excess(np.bincount((values * 64).astype(int), minlength=64), np.full(64, 1 / 64)) < CHI_SQUARE_LIMIT
    grid = (values.reshape(200, 200) * 8).astype(int)
    for pairs in (grid[1:] * 8 + grid[:-1], grid[:, 1:] * 8 + grid[:, :-1]):  # successive positions, successive seeds
        assert excess(np.bincount(pairs.ravel(), minlength=64), np.full(64, 1 / 64)) < CHI_SQUARE_LIMIT


def test_uniforms_are_those_of_splitmix64() -> None:
    """The generator's published test vector begins with this output for state 1234567."""
    state = np.uint64(1234567)
    golden = np.array([0x9E3779B97F4A7C15], np.uint64)
    assert int(_hash(golden + state)[0]) == 6457827717110365317
    assert int(_hash(golden * np.uint64(2) + state)[0]) == 3203168211198807973


def test_no_seed_continues_the_numbers_of_another() -> None:
    """The hashed counters step by GOLDEN, so seeds must not be used as counters."""
    seed, shifted = np.array([77], np.uint64), np.array([77], np.uint64) + GOLDEN
    assert uniforms(seed, np.array([5])) != uniforms(shifted, np.array([4]))


def test_draws_follow_the_distribution() -> None:
    torch.manual_seed(1)
    logits, rows = torch.randn(12) * 1.5, 4096
    desk = Desk(12, max_rows=rows, max_len=1)
    for row in range(rows):
        desk.open(row, seed=row, temperature=0.8)
    counts = np.bincount(desk.sample(logits.expand(rows, -1)).token_ids.numpy(), minlength=12)
    probabilities = (logits.double() / 0.8).softmax(0).numpy()
    assert excess(counts, probabilities) < CHI_SQUARE_LIMIT


def test_draws_along_one_request_follow_the_filtered_distribution() -> None:
    logits, rows, length = torch.tensor([[2.0, 1.0, 1.5, -1.0, 0.5]]), 16, 129
    desk = Desk(5, max_rows=rows, max_len=length)
    for row in range(rows):
        desk.open(row, seed=-row, top_k=3)
    drawn = np.array([desk.step(logits.expand(rows, -1)) for _ in range(length - 1)])
    probabilities = torch.tensor([2.0, 1.0, 1.5]).softmax(0).numpy()
    assert set(np.unique(drawn)) == {0, 1, 2}
    assert excess(np.bincount(drawn.ravel(), minlength=3), probabilities) < CHI_SQUARE_LIMIT


MIX: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"seed": 1},
    {"seed": 2, "temperature": 0.7},
    {"seed": 3, "top_p": 0.8},
    {"seed": 4, "top_k": 20, "top_p": 0.9},
    {"seed": 5, "top_k": 400, "min_p": 0.01},
    {"seed": 6, "min_p": 0.05, "logprobs": 3},
    {"seed": 7, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"seed": 8, "logit_bias": {3: 4.0}, "bad_words": ((1,), (2, 3))},
    {"seed": 9, "allowed_token_ids": tuple(range(0, 900, 2)), "min_tokens": 40, "eos_ids": (4,)},
    {"temperature": 0.0, "frequency_penalty": 1.0},
    {"seed": 1},
]


def generate(vocab_size: int, mix: list[dict[str, Any]], groups: list[list[int]], steps: int) -> list[list[int]]:
    """Tokens of each request; a step serves the groups one after the other, each as one batch."""
    desk = Desk(vocab_size)
    for row, params in enumerate(mix):
        desk.open(row, [row + 1, 2, 3], **params)
    for step in range(steps):
        torch.manual_seed(step)
        logits = torch.randn(len(mix), vocab_size) * 2
        for group in groups:
            desk.step(logits[group], group)
    return [desk.tokens(row)[3:] for row in range(len(mix))]


@pytest.mark.parametrize(("vocab_size", "steps"), [(997, 20), (151936, 1)])
def test_a_row_gets_the_same_tokens_alone_and_in_any_company(vocab_size: int, steps: int) -> None:
    everyone = list(range(len(MIX)))
    alone = generate(vocab_size, MIX, [[row] for row in everyone], steps)
    assert generate(vocab_size, MIX, [everyone], steps) == alone
    assert generate(vocab_size, MIX, [everyone[::-1]], steps) == alone
    assert generate(vocab_size, MIX, [[0, 3, 5], [11, 1, 2, 4], [10, 9, 8, 7, 6]], steps) == alone


def test_the_seed_and_the_position_decide() -> None:
    logits = torch.zeros(1, 1000)
    desk = Desk(1000)
    runs = []
    for seed in (5, 5, 6, 5 - (1 << 64), (1 << 64) - 1, -1):
        desk.open(0, [1], seed=seed)
        runs.append([desk.step(logits)[0] for _ in range(8)])
    assert runs[0] == runs[1] == runs[3]
    assert runs[4] == runs[5]
    assert runs[0] != runs[2] and len(set(runs[0])) > 1
    desk.open(0, [1, *runs[0][:4]], 1, seed=5)
    assert [desk.step(logits)[0] for _ in range(4)] == runs[0][4:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy_takes_the_lowest_id_of_the_largest(dtype: torch.dtype) -> None:
    desk = Desk(300)
    for row in range(4):
        desk.open(row, **({"temperature": 0.0} if row % 2 else {"top_k": 1}))
    logits = torch.zeros(4, 300, dtype=dtype)
    logits[1, [299, 17, 250]] = 2.0
    logits[2, 299] = 1.0
    logits[3] = float("-inf")
    logits[3, [8, 7]] = -5.0
    assert desk.sample(logits).token_ids.tolist() == [0, 17, 299, 7]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_only_a_token_with_weight_is_drawn(place: int) -> None:
    rows = 512
    desk = Desk(3, max_rows=rows, max_len=1)
    for row in range(rows):
        desk.open(row, seed=row, temperature=100.0)
    logits = torch.full((rows, 3), float("-inf"))
    logits[:, place] = -2.0
    assert set(desk.sample(logits).token_ids.tolist()) == {place}


@pytest.mark.parametrize(("u", "expected"), [(0.0, 1), (0.5, 3), (1.0 - 2.0**-53, 3)])
def test_the_ends_of_the_interval_draw_tokens_with_weight(
    u: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightllm.sampling.draw.uniforms", lambda seeds, positions: np.full(len(seeds), u))
    desk = Desk(5)
    desk.open(0)
    logits = torch.tensor([[float("-inf"), 1.0, float("-inf"), 1.0, float("-inf")]])
    assert desk.sample(logits).token_ids.tolist() == [expected]


def test_logits_that_are_no_contiguous_float32_are_taken() -> None:
    desk = Desk(50)
    for row in range(4):
        desk.open(row, seed=row)
    logits = (torch.randn(50, 4) * 2).t()
    expected = desk.sample(logits.contiguous()).token_ids
    assert torch.equal(desk.sample(logits).token_ids, expected)
    half = logits.half()
    assert torch.equal(desk.sample(half).token_ids, desk.sample(half.float()).token_ids)


def threshold_by_definition(e: Tensor, weights: Tensor, need: int) -> float:
    return max(float(t) for t in e.unique() if int(weights[e >= t].sum()) >= need)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30))
def test_the_threshold_search_is_exact(data: st.DataObject, values: list[float]) -> None:
    e = torch.tensor([[*values, 1.0]])
    weights = weigh(e) + 1
    need = data.draw(st.integers(1, int(weights.sum())))
    found = largest_threshold(e, weights, torch.tensor([[need]]))
    assert float(found) == threshold_by_definition(e, weights, need)
    assert int(weigh(torch.ones(1))) == 1 << WEIGHT_BITS
