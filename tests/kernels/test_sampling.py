"""Greedy choice and draws of the kernels against the sampler's torch code, with the same random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightllm.kernels.transfer import Transfer
from lightllm.kernels.triton import sampling, sampling_filters, sampling_op
from lightllm.kernels.triton.sampling_op import GreedyChooser
from lightllm.protocol.plan import OpenedRow
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.sampling import sampler
from lightllm.sampling.draw import DrawParameters, DrawPlan
from lightllm.sampling.stage import HostBatch
from lightllm.sampling.weights import WEIGHT_BITS

SIZES = [1, 97, 1024, 1025, 2049, 8193]
GREEDY = {"temperature": 0.0}
FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7, "min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 2},
    {"top_k": 50},
    {"top_k": 700, "temperature": 3.0},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 0.8},
    {"top_p": 0.999, "temperature": 40.0},
    {"top_k": 20, "top_p": 0.9},
    {"top_k": 600, "top_p": 0.3, "temperature": 2.0},
    {"temperature": 0.6, "min_p": 0.01, "top_k": 20, "top_p": 0.95},
    {"temperature": 1.5, "min_p": 0.3, "top_k": 400, "top_p": 0.7},
]


def plan_of(params: list[dict[str, Any]], size: int, device: torch.device, position: int = 1) -> DrawPlan | None:
    parameters = DrawParameters(len(params), size, device)
    for row, wanted in enumerate(params):
        known = np.zeros(1, np.int32)
        parameters.open(OpenedRow(row, known, 1, SamplingParams(max_tokens=None, **wanted), 7 * row, ()))
    rows = np.arange(len(params), dtype=np.int32)
    transfer = Transfer(device)
    plan = parameters.plan(HostBatch(rows, np.full_like(rows, position)), transfer)
    transfer.send()
    return plan


def choose(logits: Tensor, plan: DrawPlan | None) -> Tensor:
    """What the kernels choose; the logits stay, and the history gets the ids after each row's last token."""
    before, count = logits.clone(), len(logits)
    history = torch.full((count + 2, 7), -1, dtype=torch.int32, device=logits.device)
    rows, positions = torch.arange(count, device=logits.device) + 1, torch.arange(count, device=logits.device) % 6
    choose_tokens = sampler._Kernels(max(1, count), logits.device)
    chosen = choose_tokens(logits, plan, history, (rows, positions), None)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    expected = torch.full_like(history, -1)
    expected[rows, positions + 1] = chosen[0]
    torch.testing.assert_close(history, expected)
    best = logits.float().amax(1) if logits.shape[1] else logits.new_zeros(count)
    likeliest = (choose_tokens(logits, None, history, (rows, positions), None), best)
    torch.testing.assert_close(choose_tokens(logits, plan, history, (rows, positions), likeliest), chosen)
    torch.testing.assert_close(history, expected)
    return chosen


def check(logits: Tensor, params: list[dict[str, Any]], positions: int = 1) -> None:
    for position in range(1, positions + 1):
        plan = plan_of(params, logits.shape[1], logits.device, position)
        expected = sampler._choose(logits.float().clone(), plan, logits, None)
        torch.testing.assert_close(choose(logits, plan), expected, rtol=0, atol=0)


def test_the_weights_have_the_reference_scale():
    assert sampling.SCALE.value == 2.0**WEIGHT_BITS
    assert sampling_filters.STATE.value == sampling_filters.STATE_SIZE


@pytest.mark.parametrize("num_rows", [0, 1, 5, 33])
@pytest.mark.parametrize("size", SIZES)
def test_greedy_takes_the_lowest_id_of_the_largest_logits(num_rows, size, device, dtype):
    logits = torch.randn(num_rows, size, device=device).mul(4).round().to(dtype)  # many ties
    check(logits, [GREEDY] * num_rows)


def test_greedy_writes_the_history_and_can_be_repeated(device):
    chooser = GreedyChooser(8, device)
    history = torch.full((6, 9), -1, dtype=torch.int32, device=device)
    rows, positions = torch.tensor([4, 0, 2], device=device), torch.tensor([3, 0, 7], device=device)
    for _ in range(3):
        logits = torch.randn(3, 2050, device=device)
        greedy = chooser(logits, (history, rows, positions))
        ids = logits.argmax(1).int()
        torch.testing.assert_close(greedy.ids, ids)
        torch.testing.assert_close(greedy.best, logits.amax(1))
        expected = torch.full_like(history, -1)
        expected[rows, positions + 1] = ids
        torch.testing.assert_close(history, expected)


def test_rows_with_nan_infinity_or_nothing_left_are_bad_and_alone(device):
    logits = torch.randn(8, 2049, device=device)
    logits[1, 5] = float("nan")
    logits[2, 2048] = float("nan")
    logits[3] = float("-inf")
    logits[4, 2000] = float("inf")
    logits[5, :2048] = float("-inf")
    logits[6, 7] = float("-inf")
    for params in (GREEDY, {}, {"top_k": 3, "top_p": 0.8}):
        check(logits, [params] * 8)
    assert choose(logits, None)[1].tolist() == [0, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("size", [1, 97, 1025, 2051])
def test_draws_give_what_the_reference_gives(size, device, dtype):
    check((torch.randn(len(FILTERS), size, device=device) * 3).to(dtype), FILTERS)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_few_rows_are_drawn(num_rows, device):
    check(torch.randn(num_rows, 300, device=device), [{"top_p": 0.9}] * num_rows)


def test_ties_with_a_threshold_are_kept(device):
    check((torch.randn(len(FILTERS), 2000, device=device) * 2).round(), FILTERS)
    check(torch.zeros(len(FILTERS), 1025, device=device), FILTERS)


def test_candidates_that_do_not_fit_are_read_again(device, monkeypatch):
    monkeypatch.setattr(sampling_op, "CAPACITY", 4)
    check(torch.randn(len(FILTERS), 1025, device=device), FILTERS)


def test_a_peak_above_everything_is_always_drawn(device):
    logits = torch.randn(len(FILTERS), 1100, device=device)
    logits[:, 1050] = 4000.0
    ids, _ = choose(logits, plan_of([{**p, "temperature": 1.0} for p in FILTERS], 1100, device))
    assert (ids == 1050).all()


def test_mixed_rows_get_what_each_gets_alone(device):
    """Forty rows and five are split differently, too."""
    params = [GREEDY, {"temperature": 0.6}, {"top_k": 30, "top_p": 0.9}, GREEDY, {"min_p": 0.05}]
    logits = torch.randn(len(params), 2100, device=device) * 2
    check(logits, params, positions=2)
    first = plan_of(params, 2100, device)
    together, _ = choose(logits, first)
    order = torch.arange(len(params), device=device).repeat_interleave(8)
    plan = plan_of([params[i] for i in order.tolist()], 2100, device)
    # Seeds go by row: give each copy the random number of its original.
    assert plan is not None and first is not None
    plan.uniforms.arrive(first.uniforms.tensor.repeat_interleave(8, 0))
    copies, _ = choose(logits[order], plan)
    torch.testing.assert_close(copies, together[order])


def test_rows_may_be_strided(device):
    wide = torch.randn(4, 1300, device=device)
    params = [{}, {"top_k": 9}, GREEDY, {"top_p": 0.7}]
    plan = plan_of(params, 1100, device)
    torch.testing.assert_close(choose(wide[:, :1100], plan), choose(wide[:, :1100].contiguous(), plan))


def test_the_tail_is_reached(device):
    """A uniform number close to 1 takes the last token that weighs anything."""
    logits = torch.full((1, 2500), -3.0, device=device)
    logits[0, 2400:] = float("-inf")
    plan = plan_of([{}], 2500, device)
    assert plan is not None
    plan.uniforms.arrive(torch.full((1, 1), 1 - 2.0**-53, dtype=torch.float64, device=device))
    assert choose(logits, plan)[0].tolist() == [2399]
    plan.uniforms.arrive(torch.zeros(1, 1, dtype=torch.float64, device=device))
    assert choose(logits, plan)[0].tolist() == [0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("params", FILTERS, ids=str)
@pytest.mark.parametrize("num_rows", [1, 40])
def test_a_whole_vocabulary_of_bfloat16(num_rows, params):
    torch.manual_seed(1)
    logits = (torch.randn(num_rows, 151936, device="cuda") * 2).bfloat16()
    check(logits, [params] * num_rows, positions=2)
    check(logits.float() + 1e-3 * torch.randn_like(logits, dtype=torch.float32), [params] * num_rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_greedy_in_a_graph_follows_new_logits():
    device = torch.device("cuda")
    logits = torch.randn(40, 151936, device=device).bfloat16()
    chooser = GreedyChooser(64, device)
    chooser(logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        greedy = chooser(logits)
    for _ in range(3):
        logits.copy_(torch.randn(40, 151936, device=device))
        graph.replay()
        expected = logits.float().cpu().numpy().argmax(1)
        np.testing.assert_array_equal(greedy.ids.cpu().numpy(), expected)
