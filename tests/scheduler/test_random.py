"""Random operations on scheduler, allocator and prefix tree together, checked slot by slot after each."""

from __future__ import annotations

import random

import pytest
from device import Harness, make_harness

POLICIES = ["fcfs", "priority", "shortest", "longest_prefix", "deadline", "vtc"]
ESTIMATORS = ["fixed", "conservative", "watermark", "exponential", "past_future_sampled", "past_future"]


def random_harness(rng: random.Random) -> Harness:
    """Small pools and rows, so that everything runs out."""
    return make_harness(
        rng.choice([40, 64, 100]),
        shareable_len=rng.choice([None, None, 15]),
        chunk_size=rng.choice([1, 7, 512]),
        max_step_tokens=rng.choice([4, 32, 512]),
        prefix_cache=rng.random() < 0.7,
        estimator=rng.choice(ESTIMATORS),
        policy=rng.choice(POLICIES),
        preemption=rng.choice(["cheapest", "newest"]),
        prefix_eviction=rng.choice(["lru", "lfu", "priority"]),
        admission_interval=rng.choice([1, 1, 3]),
        overtaking=rng.choice([0, 2, 16]),
        fixed_output_len=3,
        ageing=5.0,
        ttft_target=rng.choice([None, 20.0]),
    )


def random_submit(harness: Harness, rng: random.Random) -> None:
    prompt = ([rng.randint(2, 4) for _ in range(rng.randint(1, 3))] * rng.randint(1, 8))[:24]
    if rng.random() < 0.3:
        prompt = [3] * 20
    max_tokens = rng.choice([0, rng.randint(1, 16), rng.randint(1, 16)])
    min_tokens = rng.choice([0, 0, max_tokens // 2])
    harness.submit(
        prompt,
        max_tokens,
        salt=rng.choice(["", "", "", "other"]),
        min_tokens=min_tokens,
        ignore_eos=rng.random() < 0.2,
        stop_token_ids=rng.choice([(), (), (5, 6, 7)]),
        prompt_logprobs=rng.choice([None, None, None, None, 0]),
        tenant=rng.choice(["", "a", "b"]),
        priority=rng.randint(0, 2),
        share_prefix=rng.random() < 0.9,
        refuse_late=rng.random() < 0.5,
        ttft_target=rng.choice([None, 10.0]),
    )


@pytest.mark.parametrize("breaking", [False, True], ids=["sound", "breaking"])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_mixed_up_or_leaked(seed: int, depth: int, breaking: bool) -> None:
    rng = random.Random(f"{seed}/{depth}/{breaking}")
    harness = random_harness(rng)
    for _ in range(160):
        if rng.random() < 0.4 and len(harness.submits) < 40:
            random_submit(harness, rng)
        if rng.random() < 0.06 and harness.submits:
            harness.abort(rng.randrange(len(harness.submits)))
        plan = harness.launch(breaks=breaking and rng.random() < 0.04, fails=breaking and rng.random() < 0.04)
        while harness.flight and (plan is None or len(harness.flight) > depth):
            harness.land()
    harness.drain(depth)
    harness.assert_outputs()
    ledger = harness.scheduler.memory.ledger()
    assert ledger.held == ledger.locked == 0
    harness.scheduler.memory.forget()
    assert harness.scheduler.memory.ledger().free == ledger.total
    assert harness.num_operations > 160
