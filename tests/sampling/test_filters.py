"""What top_k, top_p and min_p keep, against Transformers and against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .desk import kept

VOCABULARIES = [1, 2, 97, 1009, 4099, 151936]


def kept_by_transformers(logits: Tensor, params: dict[str, Any]) -> Tensor:
    """The same filters in the same order, in float64 so that the sums of Transformers are exact enough."""
    scores = logits.double()
    if params.get("temperature", 1.0) != 1.0:
        scores = TemperatureLogitsWarper(params["temperature"])(None, scores)
    if "min_p" in params:
        scores = MinPLogitsWarper(params["min_p"])(None, scores)
    if "top_k" in params:
        scores = TopKLogitsWarper(params["top_k"])(None, scores)
    if "top_p" in params:
        scores = TopPLogitsWarper(params["top_p"])(None, scores)
    return scores > float("-inf")


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 2},
        {"top_k": 50},
        {"top_k": 300},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 50, "top_p": 0.8},
        {"top_k": 300, "top_p": 0.8},
        {"temperature": 0.6, "min_p": 0.01, "top_k": 20, "top_p": 0.95},
        {"temperature": 1.7, "min_p": 0.001, "top_p": 0.95},
    ],
    ids=str,
)
def test_filters_keep_what_transformers_keeps(vocab_size: int, params: dict[str, Any]) -> None:
    torch.manual_seed(vocab_size)
    rows = 1 if vocab_size > 5000 else 6
    logits = torch.randn(rows, vocab_size) * 3
    assert torch.equal(kept(logits, [params] * rows), kept_by_transformers(logits, params))


def test_rows_with_different_filters_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    params: list[dict[str, Any]] = [
        {},
        {"top_k": 3},
        {"top_k": 255},
        {"top_k": 257},
        {"top_p": 0.3},
        {"min_p": 0.2},
        {"top_k": 5, "top_p": 0.5},
        {"top_k": 300, "top_p": 0.5},
        {"temperature": 0.5, "top_k": 5, "min_p": 0.3},
    ]
    logits = torch.randn(len(params), 1009) * 3
    together = kept(logits, params)
    for row, wanted in enumerate(params):
        alone = kept(logits[row : row + 1], [wanted])
        assert torch.equal(alone, together[row : row + 1]), wanted
        if wanted:
            assert torch.equal(alone, kept_by_transformers(logits[row : row + 1], wanted)), wanted


def kept_by_definition(logits: Tensor, min_p: float, top_k: int, top_p: float) -> Tensor:
    """One row of logits that differ by 2**-i at most: likeliest first, every tie kept."""
    weights = (logits - logits.max()).exp().double()  # [vocab]
    alive = weights >= min_p
    alive &= weights >= weights.sort(descending=True).values[min(top_k, len(weights)) - 1]
    left = torch.where(alive, weights, 0.0)
    reached = [t for t in left[left > 0].unique() if left[left >= t].sum() >= top_p * left.sum() * (1 - 1e-9)]
    return left >= max(reached)


@settings(max_examples=80, deadline=None)
@given(
    levels=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    min_p=st.sampled_from([0.0, 0.1, 0.5]),
    top_k=st.integers(2, 45),
    top_p=st.sampled_from([0.05, 0.2, 0.37, 0.71, 0.93]),
)
def test_ties_with_the_last_token_kept_are_kept(levels: list[int], min_p: float, top_k: int, top_p: float) -> None:
    logits = torch.tensor(levels, dtype=torch.float32)
    params = {"min_p": min_p, "top_k": top_k, "top_p": top_p}
    assert torch.equal(kept(logits[None], [params])[0], kept_by_definition(logits, min_p, top_k, top_p))


@pytest.mark.parametrize("vocab_size", [3, 1000, 151936])
def test_equal_logits_are_all_kept(vocab_size: int) -> None:
    logits = torch.full((1, vocab_size), 3.25)
    for params in ({"top_k": 2}, {"top_k": vocab_size - 1}, {"top_p": 0.5}, {"min_p": 1.0}):
        assert kept(logits, [params]).all()


def test_at_least_one_token_is_kept() -> None:
    logits = torch.tensor([[0.0, 30.0, 0.0]])
    assert kept(logits, [{"top_p": 1e-9}]).tolist() == [[False, True, False]]


def test_banned_tokens_are_never_kept() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0, float("-inf")]])
    for params in ({}, {"top_k": 3}, {"top_p": 0.999999}, {"temperature": 100.0}):
        assert kept(logits, [params]).tolist() == [[True, False, True, False]]
