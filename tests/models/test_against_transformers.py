"""Greedy ids and logits equal those of Transformers' own models, in every way a request can be run."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightllm import LLM, SamplingParams

Checkpoint = tuple[Path, Any]
VOCABULARY = 512

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-mha-bias": ("Llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-dynamic": (
        "Llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 32},
    ),
    "llama-yarn": (
        "Llama",
        {
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            "max_position_embeddings": 256,
        },
    ),
    "llama3": (
        "Llama",
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "qwen2": ("Qwen2", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-mha": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 4}),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks-of-1": {"chunk_size": 1},
    "chunks-of-7": {"chunk_size": 7, "max_step_tokens": 16},
    "no-prefix-cache": {"prefix_cache": False, "chunk_size": 512},
    "preempted": {
        "max_total_tokens": 80,
        "max_model_len": 79,
        "estimator": "fixed",
        "fixed_output_len": 1,
        "chunk_size": 7,
    },
}


@pytest.fixture(scope="module", params=FAMILIES, ids=list(FAMILIES))
def family(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    name, changes = FAMILIES[request.param]
    return make_checkpoint(name, seed=7, **changes)


@pytest.fixture(scope="module")
def work() -> list[tuple[list[int], int]]:
    """Prompts of ragged length, some with a shared prefix and some equal, with the number of tokens wanted."""
    rng = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(count)]

    shared = tokens(24)
    prompts = [tokens(rng.choice([1, 2, 5, 17, 40])) for _ in range(7)]
    prompts += [shared + tokens(3) for _ in range(3)] + [shared[:20], prompts[4], prompts[4]]
    return [(prompt, rng.choice([1, 6, 24])) for prompt in prompts]


@pytest.fixture(scope="module")
def expected(family: Checkpoint, work: list[tuple[list[int], int]]) -> list[list[int]]:
    _, model = family
    return [greedy(model, prompt, count) for prompt, count in work]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """Transformers' greedy continuation of one prompt, alone, with its cache.

    On a copy: its dynamic rotary embedding remembers the longest sequence it has seen.
    """
    model = copy.deepcopy(model)
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_greedy_ids(
    family: Checkpoint, work: list[tuple[list[int], int]], expected: list[list[int]], way: dict[str, Any]
) -> None:
    directory, _ = family
    with LLM(str(directory), **way) as llm:
        params = [SamplingParams(temperature=0, max_tokens=count) for _, count in work]
        outputs = llm.generate([prompt for prompt, _ in work], params, progress=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        scheduler = llm._parts.scheduler
        scheduler.check()
        assert scheduler.memory.ledger().in_use == 0
        if way.get("estimator") == "fixed":
            assert scheduler.counters.num_preemptions > 0


def test_arriving_while_others_run(
    family: Checkpoint, work: list[tuple[list[int], int]], expected: list[list[int]]
) -> None:
    directory, _ = family
    with LLM(str(directory), chunk_size=7, max_running=4) as llm:
        streams = []
        for (prompt, count), wanted in zip(work, expected, strict=True):
            pieces = llm.stream(prompt, SamplingParams(temperature=0, max_tokens=count))
            streams.append((pieces, wanted, list(next(pieces).token_ids)))
        for pieces, wanted, got in streams:
            for piece in pieces:
                got.extend(piece.token_ids)
            assert got == wanted


def test_logits(family: Checkpoint, work: list[tuple[list[int], int]]) -> None:
    """Every position's log-probabilities over the whole vocabulary, within 1e-4."""
    directory, model = family
    prompts = [prompt for prompt, _ in work if len(prompt) > 1][:4]
    with LLM(str(directory), chunk_size=9) as llm:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)
        outputs = llm.generate(prompts, params, progress=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        with torch.no_grad():
            reference = copy.deepcopy(model)(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
        assert len(output.prompt_logprobs) == len(prompt)
        for position, entry in enumerate(output.prompt_logprobs[1:]):
            assert entry is not None and len(entry.top) == VOCABULARY
            ids, values = zip(*entry.top, strict=True)
            torch.testing.assert_close(torch.tensor(values), reference[position][list(ids)], atol=1e-4, rtol=0)
            assert entry.logprob == pytest.approx(float(reference[position][prompt[position + 1]]), abs=1e-4)
