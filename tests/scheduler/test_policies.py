"""The order in which each policy admits, and the guarantees it gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from device import Harness, make_harness

from lightllm.config.settings import SchedulerSettings
from lightllm.protocol.messages import FinishReason, Submit, pack_ids
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.policies import Policy, VirtualTokenCounter, make_policy, vtc
from lightllm.scheduler.request import Request


class Outlook:
    """Answers that a test chooses."""

    def __init__(self, cached: dict[int, int] | None = None, seconds_per_token: float = 0.0) -> None:
        self._cached = cached or {}
        self._seconds_per_token = seconds_per_token

    def cached_len(self, request: Request) -> int:
        return self._cached.get(request.request_id, 0)

    def expected_output(self, request: Request) -> float:
        return float(request.max_len - request.prompt_len)

    def prefill_seconds(self, request: Request) -> float:
        return self._seconds_per_token * request.prompt_len


def policy_of(name: str, **settings: object) -> Policy:
    return make_policy(SchedulerSettings(policy=name, **settings))  # type: ignore[arg-type]


def request(number: int, prompt_len: int = 4, max_tokens: int = 8, arrival: float = 0.0, **fields: object) -> Request:
    submit = Submit(number, pack_ids([3] * prompt_len), SamplingParams(), max_tokens, number, arrival, **fields)
    return Request(submit, number)


def order(policy: Policy, outlook: Outlook | None = None, now: float = 0.0) -> list[int]:
    """Admit everybody, one after the other."""
    admitted = []
    for chosen in policy.candidates(now, outlook or Outlook()):
        policy.remove(chosen)
        policy.on_admit(chosen, now)
        admitted.append(chosen.request_id)
    return admitted


@pytest.mark.parametrize("name", ["fcfs", "priority", "shortest", "longest_prefix", "deadline", "vtc"])
def test_equals_go_in_order_of_arrival_and_the_preempted_first(name: str) -> None:
    policy = policy_of(name)
    for number in (1, 2, 3):
        policy.append(request(number), 0.0)
    returned = request(0)
    returned.num_preemptions = 1
    policy.requeue(returned, 0.0)
    assert len(policy) == 4
    assert order(policy) == [0, 1, 2, 3]
    assert len(policy) == 0 and order(policy) == []


@pytest.mark.parametrize("name", ["fcfs", "priority", "shortest", "longest_prefix", "deadline", "vtc"])
def test_what_was_removed_is_gone(name: str) -> None:
    policy = policy_of(name)
    requests = [request(number) for number in range(5)]
    for each in requests:
        policy.append(each, 0.0)
    next(iter(policy.candidates(0.0, Outlook())))
    policy.remove(requests[0])
    policy.remove(requests[3])
    assert order(policy) == [1, 2, 4]


def test_priority_until_one_has_waited_too_long() -> None:
    policy = policy_of("priority", ageing=10.0)
    for number, priority, now in ((0, 0, 0.0), (1, 2, 5.0), (2, 1, 5.0)):
        policy.append(request(number, priority=priority), now)
    assert order(policy, now=9.0) == [1, 2, 0]
    for number, priority, now in ((3, 0, 0.0), (4, 2, 5.0)):
        policy.append(request(number, priority=priority), now)
    assert order(policy, now=10.0) == [3, 4]


def test_shortest_predicted_first() -> None:
    policy = policy_of("shortest")
    for number, prompt_len, max_tokens in ((0, 10, 90), (1, 50, 5), (2, 10, 10)):
        policy.append(request(number, prompt_len, max_tokens), 0.0)
    assert order(policy) == [2, 1, 0]


def test_longest_cached_prefix_first() -> None:
    policy = policy_of("longest_prefix")
    for number in range(4):
        policy.append(request(number), 0.0)
    assert order(policy, Outlook({2: 3, 3: 1})) == [2, 3, 0, 1]


def test_earliest_deadline_first_and_the_late_last() -> None:
    policy = policy_of("deadline", ttft_target=100.0)
    targets = {0: None, 1: 20.0, 2: 5.0, 3: 1.0}
    for number, target in targets.items():
        policy.append(request(number, prompt_len=4, ttft_target=target, refuse_late=number == 3), 0.0)
    outlook = Outlook(seconds_per_token=0.5)
    assert [late.request_id for late in policy.hopeless(0.0, outlook)] == [3]
    assert order(policy, outlook) == [2, 1, 0, 3]


def test_a_late_request_is_refused_with_its_target() -> None:
    harness = make_harness(64, policy="deadline", max_running=1)
    harness.submit(range(2, 12), 20, ignore_eos=True)
    harness.step()
    late = harness.submit(range(2, 12), 20, ttft_target=3.0, refuse_late=True)
    patient = harness.submit(range(2, 12), 4, ttft_target=3.0)
    harness.drain()
    end = harness.ends[late]
    assert end.finish is FinishReason.ERROR and end.error is not None
    assert end.error == ("overloaded", "the first token cannot be given within 3 s: 2 requests wait")
    assert harness.scheduler.counters.num_refused == 1
    assert harness.ends[patient].finish in (FinishReason.STOP, FinishReason.LENGTH)


def test_vtc_goes_by_service_weights_and_arrival() -> None:
    policy = policy_of("vtc", tenant_weight=("b=2",))
    assert isinstance(policy, VirtualTokenCounter)
    for number in range(4):
        policy.append(request(number, 10, tenant="a"), 0.0)
    for number in range(4, 8):
        policy.append(request(number, 10, tenant="b"), 0.0)
    assert order(policy) == [0, 4, 5, 1, 6, 7, 2, 3]
    policy.on_tokens([request(0, tenant="a")] * 5, 0.0)
    assert policy.counters == {"a": 40 + 10.0, "b": 20.0}


def test_vtc_lifts_who_was_away() -> None:
    policy = VirtualTokenCounter()
    policy.append(request(0, 100, tenant="a"), 0.0)
    policy.append(request(1, 100, tenant="a"), 0.0)
    first = next(iter(policy.candidates(0.0, Outlook())))
    policy.remove(first)
    policy.on_admit(first, 0.0)
    policy.append(request(2, 100, tenant="b"), 0.0)
    assert policy.counters == {"a": 100.0, "b": 100.0}
    assert order(policy) == [1, 2]
    policy.append(request(3, 100, tenant="c"), 0.0)
    assert policy.counters["c"] == 200.0, "lifted to the last to leave"


def test_vtc_forgets_idle_tenants_and_not_who_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtc, "_MOST_IDLE_TENANTS", 4)
    policy = VirtualTokenCounter()
    policy.append(request(0, tenant="waits all the time"), 0.0)
    for number in range(1, 20):
        policy.append(request(number, tenant=f"tenant {number}"), 0.0)
        *_, last = policy.candidates(0.0, Outlook())
        assert last.request_id == number, "equals go in order of arrival"
        policy.remove(last)
        policy.on_admit(last, 0.0)
        assert len(policy.counters) <= 4 + 2
    assert order(policy) == [0]


def serve(harness: Harness, submit: Callable[[], None], steps: int) -> None:
    for _ in range(steps):
        submit()
        harness.step()


@pytest.mark.parametrize("seed", range(5))
def test_vtc_keeps_backlogged_tenants_within_the_published_bound(seed: int) -> None:
    # OSDI 2024, Theorem 4.4: |W_f - W_g| <= 2 max(w_p L_input, w_q M) while both are backlogged
    total, longest = 120, 16
    harness = make_harness(total, max_len=32, policy="vtc", max_running=12, max_step_tokens=64, estimator="past_future")
    policy = harness.scheduler._policy
    assert isinstance(policy, VirtualTokenCounter)
    random = np.random.default_rng(seed)
    bound = 2 * max(1.0 * longest, 2.0 * total)
    worst = 0.0

    def submit() -> None:
        nonlocal worst
        for tenant, most in (("busy", 10), ("calm", 1)):
            queued = sum(r.submit.tenant == tenant and r.row < 0 for r in harness.scheduler._roster.requests.values())
            while queued < 2 * most:
                prompt = random.integers(2, 1000, int(random.integers(1, longest)))
                harness.submit(prompt, int(random.integers(1, 16)), tenant=tenant, ignore_eos=True)
                queued += 1
        worst = max(worst, abs(policy.counters.get("busy", 0.0) - policy.counters.get("calm", 0.0)))

    serve(harness, submit, 400)
    assert 0.0 < worst <= bound
    assert min(policy.counters.values()) > 4 * bound, "long enough to tell"
