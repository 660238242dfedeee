"""The whole pipeline: all parameters together, log-probabilities, rows that cannot be served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lightllm.sampling.grammar import TokenMasks, mask_words
from lightllm.sampling.sampler import LogprobTensors
from lightllm.sampling.uniforms import uniforms

from .desk import Desk

NAN, INF = float("nan"), float("inf")
EVERYTHING: dict[str, Any] = {
    "temperature": 0.9,
    "min_p": 0.002,
    "top_k": 60,
    "top_p": 0.93,
    "repetition_penalty": 1.2,
    "logit_bias": {3: 2.0, 4: -3.0, 5: -1.0},
    "min_tokens": 8,
    "eos_ids": (6, 7),
    "bad_words": ((8,), (2, 9), (1, 2, 10)),
}


def transformers_chain(prompt_len: int) -> LogitsProcessorList:
    bias = [[[token], value] for token, value in EVERYTHING["logit_bias"].items()]
    return LogitsProcessorList(
        [
            NoBadWordsLogitsProcessor([list(word) for word in EVERYTHING["bad_words"]]),
            MinNewTokensLengthLogitsProcessor(prompt_len, EVERYTHING["min_tokens"], EVERYTHING["eos_ids"], "cpu"),
            RepetitionPenaltyLogitsProcessor(EVERYTHING["repetition_penalty"]),
            SequenceBiasLogitsProcessor(bias),
            TemperatureLogitsWarper(EVERYTHING["temperature"]),
            MinPLogitsWarper(EVERYTHING["min_p"]),
            TopKLogitsWarper(EVERYTHING["top_k"]),
            TopPLogitsWarper(EVERYTHING["top_p"]),
        ]
    )


def distinct_logits(vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Logits [vocab] without ties, of which Transformers' top_p keeps some that happen to be sorted first."""
    values = (torch.randn(20 * vocab_size) * 3).to(dtype).unique()
    return values[torch.randperm(len(values))[:vocab_size]]


@pytest.mark.parametrize("vocab_size", [97, 1009])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_parameters_together_give_the_tokens_of_transformers_probabilities(
    vocab_size: int, dtype: torch.dtype
) -> None:
    rows, prompt = 8, [11, 1, 2]
    desk, chain = Desk(vocab_size, max_rows=rows), transformers_chain(len(prompt))
    for row in range(rows):
        desk.open(row, prompt, seed=row, **EVERYTHING)
    for step in range(12):
        torch.manual_seed(step)
        logits = torch.stack([distinct_logits(vocab_size, dtype) for _ in range(rows)])
        known = torch.tensor([desk.tokens(row) for row in range(rows)])
        probabilities = chain(known, logits.double()).softmax(dim=1)
        u = uniforms(np.arange(rows, dtype=np.uint64), desk.lengths[:rows].copy())
        expected = (probabilities.cumsum(dim=1) <= torch.from_numpy(u)[:, None]).sum(dim=1)
        assert desk.step(logits) == expected.tolist()


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {**EVERYTHING, "min_tokens": 0, "bad_words": ()}])
def test_a_vocabulary_of_one_token(params: dict[str, Any]) -> None:
    desk = Desk(1)
    desk.open(0, [0], **{**params, "logprobs": 5})
    sampled = desk.sample(torch.randn(1, 1))
    assert sampled.token_ids.tolist() == [0] and not sampled.bad.any()
    assert sampled.logprobs is not None
    assert sampled.logprobs.top_values.tolist() == [[0.0]]


def test_an_empty_batch() -> None:
    sampled = Desk(10).sample(torch.empty(0, 10))
    assert sampled.token_ids.shape == sampled.bad.shape == (0,)
    assert sampled.logprobs is None


def check_logprobs(found: LogprobTensors, logits: Tensor, targets: list[int], k: int) -> None:
    """Against float64 log_softmax and a stable sort."""
    exact = logits.double().log_softmax(dim=1)
    order = logits.float().sort(dim=1, descending=True, stable=True).indices[:, :k]
    for row, target in enumerate(targets):
        assert abs(float(found.chosen[row]) - float(exact[row, target])) < 2e-6 * max(1.0, -float(exact[row, target]))
        assert int(found.ranks[row]) == int((logits[row] > logits[row, target]).sum())
    assert found.top_ids.tolist() == order.tolist()
    torch.testing.assert_close(found.top_values, exact.gather(1, order).float(), rtol=1e-6, atol=2e-6)
    assert found.top_ids.dtype == found.ranks.dtype == torch.int32


@pytest.mark.parametrize("vocab_size", [2, 97, 6401, 151936])
@pytest.mark.parametrize("k", [0, 1, 20, -1])
def test_prompt_logprobs(vocab_size: int, k: int) -> None:
    torch.manual_seed(0)
    rows = 2 if vocab_size > 10_000 else 300 if vocab_size > 5000 else 9
    logits = torch.randn(rows, vocab_size) * 4
    targets = torch.randint(vocab_size, (rows,))
    found = Desk(vocab_size).sampler.prompt_logprobs(logits, targets, k)
    check_logprobs(found, logits, targets.tolist(), vocab_size if k < 0 else min(k, vocab_size))


@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(st.sampled_from([-INF, -1.0, -0.0, 0.0, 1.0]), min_size=1, max_size=700).filter(
        lambda levels: max(levels) > -INF
    ),
    k=st.integers(1, 4),
)
def test_equally_likely_tokens_are_listed_by_id(levels: list[float], k: int) -> None:
    logits = torch.tensor([levels])
    found = Desk(len(levels)).sampler.prompt_logprobs(logits, torch.tensor([0]), k)
    assert found.top_ids[0].tolist() == sorted(range(len(levels)), key=lambda i: (-levels[i], i))[:k]


def test_logprobs_are_those_of_the_unmodified_logits() -> None:
    desk = Desk(97)
    desk.open(0, temperature=0.5, top_k=3)
    desk.open(1, [5, 6], seed=1, logprobs=2, temperature=0.3, logit_bias={7: 100.0}, presence_penalty=1.0)
    desk.open(2, logprobs=0, temperature=0.0)
    desk.open(3, seed=3, logprobs=4)
    torch.manual_seed(2)
    logits = torch.randn(4, 97) * 2
    sampled = desk.sample(logits)
    assert sampled.logprob_rows.tolist() == [1, 2, 3]
    assert sampled.logprob_counts.tolist() == [2, 0, 4]
    assert sampled.token_ids[1] == 7
    assert sampled.logprobs is not None
    check_logprobs(sampled.logprobs, logits[1:], sampled.token_ids[1:].tolist(), 4)
    same = sampled.map(lambda tensor: tensor.clone())
    assert same.logprobs is not None and torch.equal(same.logprobs.top_ids, sampled.logprobs.top_ids)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.5}, {"frequency_penalty": 1.0}])
def test_logprobs_of_a_whole_batch(params: dict[str, Any]) -> None:
    desk = Desk(97)
    for row in range(3):
        desk.open(row, [0, 1], 1, seed=row, logprobs=5, **params)
    logits = torch.randn(3, 97)
    sampled = desk.sample(logits)
    assert sampled.logprobs is not None
    check_logprobs(sampled.logprobs, logits, sampled.token_ids.tolist(), 5)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 4}, {"top_k": 300}, {"top_p": 0.5}, EVERYTHING])
def test_a_row_without_finite_logits_is_flagged_and_harms_nobody(params: dict[str, Any]) -> None:
    desk, vocab_size = Desk(1009), 1009
    for row in range(6):
        desk.open(row, [1], seed=row, logprobs=2, **params)
    torch.manual_seed(0)
    logits = torch.randn(6, vocab_size)
    expected = desk.sample(logits)
    logits[1, 500] = NAN
    logits[2] = NAN
    logits[3, 9] = INF
    logits[4] = -INF
    found = desk.sample(logits)
    assert found.bad.tolist() == [False, True, True, True, True, False]
    assert not expected.bad.any()
    assert found.token_ids.tolist() == [int(expected.token_ids[0]), 0, 0, 0, 0, int(expected.token_ids[5])]


def test_a_row_with_nothing_left_to_say_is_flagged() -> None:
    desk = Desk(10)
    desk.open(0, allowed_token_ids=(3,), bad_words=((3,),))
    desk.open(1, allowed_token_ids=(3,))
    sampled = desk.sample(torch.zeros(2, 10))
    assert sampled.bad.tolist() == [True, False] and sampled.token_ids.tolist() == [0, 3]


class NeverAsked(TorchDispatchMode):
    """Raises where a GPU would have to finish its work before the host could go on."""

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        by_mask = name in ("index", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        assert name not in self.ASKING and not by_mask, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


def test_the_host_never_waits_for_the_device() -> None:
    desk = Desk(4099)
    mix: list[dict[str, Any]] = [EVERYTHING, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 1000}, {"logprobs": 3}]
    for row, params in enumerate(mix):
        desk.open(row, [1, 2, 3], **params)
    desk.open(5, presence_penalty=1.0, allowed_token_ids=(1, 2), logprobs=5)
    logits = torch.randn(6, 4099)
    masks = TokenMasks(np.array([1]), np.full((1, mask_words(4099)), -1, np.int32))
    with NeverAsked():
        desk.sample(logits, masks=masks)
        desk.sampler.prompt_logprobs(logits, torch.zeros(6, dtype=torch.long), 5)


def test_known_likeliest_tokens_serve_draws_but_not_edited_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(10)
    for row, params in enumerate([{"temperature": 0.7}, {}, {"presence_penalty": 1.0}]):
        desk.open(row, **params)
    given: list[Any] = []
    choose = desk.sampler._choose

    def note(*arguments: Any) -> torch.Tensor:
        given.append(arguments[-1])
        return choose(*arguments)

    monkeypatch.setattr(desk.sampler, "_choose", note)
    logits = torch.randn(3, 10)
    for rows in ([0, 1], [0, 2]):
        chosen = np.array(rows, np.int32)
        likeliest = (torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2))
        batch = desk.sampler.prepare(chosen, desk.lengths[chosen])
        desk.sampler.sample(logits[rows], batch, desk.history, likeliest=likeliest)
    assert given[0] is not None and given[1] is None


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_gpu_draws_the_same_tokens_and_nobody_waits() -> None:
    mix: list[dict[str, Any]] = [
        EVERYTHING,
        {"temperature": 0.0},
        {"top_p": 0.9},
        {"top_k": 1000, "top_p": 0.7},
        {"logprobs": 5},
        {"presence_penalty": 1.0, "allowed_token_ids": tuple(range(500)), "logprobs": 3},
    ]
    torch.manual_seed(0)
    logits = torch.randn(48, 32003) * 3
    outcomes = []
    for device in ("cpu", "cuda"):
        desk = Desk(32003, device=device)
        for row in range(48):
            desk.open(row, [1, 2, 3], seed=row, **mix[row % len(mix)])
        own = logits.to(device)
        masks = TokenMasks(np.array([1]), np.full((1, mask_words(32003)), -1, np.int32))
        desk.sample(own, masks=masks)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        sampled = desk.sample(own, masks=masks)
        torch.cuda.set_sync_debug_mode("default")
        outcomes.append(sampled.map(lambda tensor: tensor.cpu()))
    assert torch.equal(outcomes[0].token_ids, outcomes[1].token_ids)
    assert outcomes[0].logprobs is not None and outcomes[1].logprobs is not None
    assert torch.equal(outcomes[0].logprobs.top_ids, outcomes[1].logprobs.top_ids)
    torch.testing.assert_close(outcomes[0].logprobs.chosen, outcomes[1].logprobs.chosen)
