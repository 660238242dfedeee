"""Who is sent back when memory runs out, and that nobody is sent back for ever."""

from __future__ import annotations

import numpy as np
import pytest
from device import make_harness

from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import Submit, pack_ids
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.lengths import Lengths
from lightllm.scheduler.preemption import MOST_PREEMPTIONS, choose_victim
from lightllm.scheduler.request import Request


class Running:
    """Requests that hold given numbers of private slots, and maybe a shared prefix."""

    def __init__(self) -> None:
        self.memory = TokenMemory(10_000)
        self.lengths = Lengths()
        self.requests: list[Request] = []

    def add(self, private: int, *, shared: list[int] | None = None, preemptions: int = 0) -> Request:
        submit = Submit(len(self.requests), pack_ids([1] * 4000), SamplingParams(), 100, 0, 0.0)
        request = Request(submit, len(self.requests), self.lengths)
        request.matched_len = len(shared or [])
        request.computed_len = request.matched_len + private
        request.num_preemptions = preemptions
        if shared is not None:
            tokens = np.array(shared, np.int32)
            if self.memory.peek(tokens).matched_len < len(shared):
                self.memory.share(tokens, self.memory.allocate(len(shared)))
            request.node = self.memory.match(tokens).node
            self.memory.lock(request.node, request.index)
        self.requests.append(request)
        return request

    def victim(self, order: str = "cheapest", spared: set[int] | None = None) -> Request | None:
        return choose_victim(self.requests, spared or set(), self.memory, self.lengths, order)  # type: ignore[arg-type]


def test_the_oldest_and_the_spared_stay() -> None:
    running = Running()
    running.add(10)
    assert running.victim() is None
    second, third = running.add(10), running.add(10)
    assert running.victim("newest") is third
    assert running.victim("newest", {third.serial}) is second
    assert running.victim("newest", {second.serial, third.serial}) is None


def test_the_cheapest_that_makes_enough_room() -> None:
    running = Running()
    for private in (500, 3000, 1000, 20):
        running.add(private)
    # four running for 64 steps want 256 slots: 20 are too few, 1000 is the least that will do
    victim = running.victim()
    assert victim is not None and victim.serial == 2


def test_what_others_keep_cached_costs_nothing_and_frees_nothing() -> None:
    running = Running()
    prefix = list(range(2000))
    running.add(10)
    with_shared = running.add(600, shared=prefix)
    running.add(700)
    running.add(900, shared=prefix)
    assert running.victim() is with_shared


def test_who_missed_its_targets_goes_first_but_not_for_ever() -> None:
    running = Running()
    running.add(1000)
    running.add(1000)
    late = running.add(2000, preemptions=1)
    assert running.victim() is late
    late.num_preemptions = MOST_PREEMPTIONS
    victim = running.victim()
    assert victim is not None and victim.serial == 1
    victim = running.victim("newest")
    assert victim is not None and victim.serial == 1


@pytest.mark.parametrize("order", ["cheapest", "newest"])
def test_everybody_ends_however_tight_memory_is(order: str) -> None:
    harness = make_harness(48, estimator="watermark", watermark=1.0, preemption=order, max_step_tokens=64)
    for number in range(20):
        harness.submit([2 + number, 3, 4, 5], 24, ignore_eos=True)
    harness.drain(depth=1)
    harness.assert_outputs()
    assert harness.scheduler.counters.num_preemptions > 10
