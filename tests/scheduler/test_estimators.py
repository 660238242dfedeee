"""Estimators and the future peak against brute force and known distributions."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from device import make_harness
from hypothesis import given
from hypothesis import strategies as st

from lightllm.config.settings import EstimatorName, SchedulerSettings
from lightllm.scheduler.estimators import Ended, Estimator, Forecast, make_estimator
from lightllm.scheduler.load import Load
from lightllm.scheduler.past_future import PastFuture
from lightllm.scheduler.peak import future_peak, load_peak
from lightllm.scheduler.survival import LengthHistory, fit_survival


def load_of(*requests: tuple[int, int, int]) -> Load:
    """Requests as (held, generated, allowed)."""
    columns = np.array(requests, np.int64).reshape(-1, 3).T
    zeros = np.zeros(len(requests), np.int64)
    return Load(columns[0], columns[1], columns[2], zeros, zeros)


def brute_peak(held: list[int], remaining: list[int]) -> int:
    """Memory step by step: each holds one more per step until it has generated all."""
    return max(
        sum(h + t for h, r in zip(held, remaining, strict=True) if r >= t) for t in range(max(remaining, default=0) + 1)
    )


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), min_size=1, max_size=8))
def test_the_peak_is_that_of_the_simulation(requests: list[tuple[int, int]]) -> None:
    held, remaining = [h for h, _ in requests], [r for _, r in requests]
    assert future_peak(np.array(held), np.array([remaining])).tolist() == [brute_peak(held, remaining)]


def test_the_peak_of_the_upstream_example() -> None:
    # after 5 steps the second ends with 2 * 5 more; the first goes on alone to 10 + 20
    assert future_peak(np.array([10, 15]), np.array([[20, 5]])).tolist() == [35]
    assert future_peak(np.empty(0, np.int64), np.empty((1, 0), np.int64)).tolist() == [0]


def test_a_prompt_in_progress_grows_later() -> None:
    load = load_of((100, 0, 10), (100, 0, 4))
    late = Load(load.held, load.generated, load.allowed, np.array([6, 0]), load.tenant)
    assert load_peak(load, load.allowed[None]).tolist() == [208]
    # 204 in truth: up to `delay` tokens too few while the late one does not grow yet
    assert load_peak(late, late.allowed[None]).tolist() == [202]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("conservative", 250 + 180), ("fixed", 250 + 80), ("watermark", 250)],
)
def test_what_simple_estimators_expect(name: str, expected: int) -> None:
    estimator = make_estimator(SchedulerSettings(estimator=name, fixed_output_len=50))  # type: ignore[arg-type]
    forecast = estimator.forecast(load_of((100, 10, 90)))
    assert forecast.peak_with(load_of((150, 10, 90))) == expected


def test_capacities() -> None:
    settings = SchedulerSettings(estimator="watermark", watermark=0.85)
    assert make_estimator(settings).capacity(1000) == 850
    assert make_estimator(SchedulerSettings(estimator="conservative")).capacity(1000) == 1000


def feed(estimator: Estimator, lengths: list[int], limit: int = 1000) -> None:
    estimator.on_submit(limit)
    for length in lengths:
        estimator.on_finish(Ended(length, limit, 0, by_itself=True))


@pytest.mark.parametrize("name", ["past_future", "past_future_sampled", "exponential"])
def test_estimators_learn_a_constant_length(name: str) -> None:
    estimator = make_estimator(SchedulerSettings(estimator=name, history_window=100))  # type: ignore[arg-type]
    feed(estimator, [200] * 150)
    assert estimator.expected_output(0, 1000, 0) == pytest.approx(200, rel=0.05)
    if name == "past_future":
        assert estimator.expected_output(150, 850, 0) == pytest.approx(50, rel=0.1)


def test_the_peak_lies_between_now_and_the_worst_case() -> None:
    estimator = make_estimator(SchedulerSettings(estimator="past_future"))
    feed(estimator, list(range(10, 500, 7)))
    load = load_of(*[(100 + number, number, 1000 - number) for number in range(40)])
    newcomer = load_of((300, 0, 1000))
    peak = estimator.forecast(load).peak_with(newcomer)
    worst = load_peak(load.plus(newcomer), load.plus(newcomer).allowed[None])[0]
    assert load.held.sum() + 300 < peak < worst


@pytest.mark.parametrize("name", get_args(EstimatorName))
def test_no_peak_passes_what_all_hold_at_their_limits(name: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        estimator = make_estimator(SchedulerSettings(estimator=name))  # type: ignore[arg-type]
        feed(estimator, random.integers(1, 900, random.integers(0, 60)).tolist())
        requests = random.integers(0, 1000, (5, 3))
        load = load_of(*map(tuple, requests[:4]))
        load = Load(load.held + 10, load.generated, load.allowed, random.integers(0, 10, 4), load.tenant)
        newcomer = load_of(tuple(requests[4]))
        assert estimator.forecast(load).peak_with(newcomer) <= load.plus(newcomer).most


def test_the_estimator_is_asked_only_where_room_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    forecast = PastFuture.forecast

    def note(self: PastFuture, load: Load) -> Forecast:
        asked.append(len(load))
        return forecast(self, load)

    monkeypatch.setattr(PastFuture, "forecast", note)
    harness = make_harness(64)
    for _ in range(3):
        harness.submit([2, 3], 18, ignore_eos=True)
    assert harness.launch().num_sequences == 3 and not asked, "three of 20 tokens each fit whatever comes"  # type: ignore[union-attr]
    harness.submit([4, 5], 18, ignore_eos=True)
    harness.launch()
    assert asked == [3]
    harness.drain()
    harness.assert_outputs()


def test_the_forecast_is_the_limit_of_many_samples() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(100, 400, 1000)
    estimator = PastFuture(1000, 0.01)
    feed(estimator, lengths.tolist(), limit=400)
    generated = random.integers(0, 90, 60)
    load = load_of(*[(50 + int(g), int(g), 400 - int(g)) for g in generated])
    newcomer = load_of((50, 0, 400))
    both = load.plus(newcomer)
    samples = random.choice(lengths, (2000, len(both)))
    peaks = load_peak(both, samples - both.generated)
    margin = estimator.margin
    forecast = estimator.forecast(load).peak_with(newcomer)
    assert np.mean(peaks) < forecast < np.mean(peaks) + (margin + 1.5) * np.std(peaks)


def test_admitting_counts_from_then_on() -> None:
    for name in ("conservative", "past_future"):
        estimator = make_estimator(SchedulerSettings(estimator=name))  # type: ignore[arg-type]
        feed(estimator, [100] * 50)
        forecast = estimator.forecast(load_of((100, 0, 200)))
        first = forecast.peak_with(load_of((100, 0, 200)))
        assert forecast.peak_with(load_of((100, 0, 200))) == first
        forecast.accept()
        assert forecast.peak_with(load_of((100, 0, 200))) > first


def test_running_requests_correct_a_history_of_early_finishers() -> None:
    history = LengthHistory(100)
    for length in (10, 20, 30):
        history.add(length, censored=False)
    naive = fit_survival(history, np.empty(0, np.int64), 1000)
    aware = fit_survival(history, np.full(97, 400), 1000)
    assert float(aware.at(np.array([400]))[0]) > 0.9
    assert float(naive.at(np.array([400]))[0]) < 0.7


def test_censored_lengths_are_at_least_so_long() -> None:
    history = LengthHistory(1000)
    for _ in range(100):
        history.add(50, censored=True)
        history.add(100, censored=False)
    survival = fit_survival(history, np.empty(0, np.int64), 200)
    assert float(survival.at(np.array([100]))[0]) > 0.95
    assert float(survival.at(np.array([101]))[0]) < 0.05


@pytest.mark.parametrize("name", ["past_future", "past_future_sampled"])
def test_outputs_that_stop_strings_ended_are_learnt_from(name: EstimatorName) -> None:
    """The engine is told of them by an abort; one for another reason says only that the output is at least so long."""
    expected = []
    for complete in (False, True):
        harness = make_harness(200, estimator=name, history_window=40)
        for number in range(50):
            request_id = harness.submit([number, 2, 3], 61, ignore_eos=True)
            for _ in range(4):
                harness.step()
            harness.scheduler.abort(request_id, harness.now, complete=complete)
        assert harness.scheduler.counters.num_finished == (50 if complete else 0)
        expected.append(harness.scheduler._estimator.expected_output(0, 61, 0))
    assert expected[1] < 8 < 30 < expected[0]


def test_the_margin_follows_preemptions() -> None:
    estimator = PastFuture(1000, 0.05)
    feed(estimator, [100] * 400)
    calm = estimator.margin
    for _ in range(5):
        estimator.on_evict()
        estimator.on_finish(Ended(100, 1000, 0, by_itself=True))
    assert estimator.margin > calm + 0.5
    raised = estimator.margin
    for _ in range(4000):
        estimator.on_finish(Ended(100, 1000, 0, by_itself=True))
    assert estimator.margin == pytest.approx(raised), "nobody was refused, nothing is learnt"
    for _ in range(4000):
        estimator.on_refuse()
        estimator.on_finish(Ended(100, 1000, 0, by_itself=True))
    assert estimator.margin < 0.6


def test_tenants_are_told_apart() -> None:
    estimator = PastFuture(1000, 0.01)
    estimator.on_submit(1000)
    for _ in range(500):
        estimator.on_finish(Ended(20, 1000, 1, by_itself=True))
        estimator.on_finish(Ended(700, 1000, 2, by_itself=True))
    brief, long, unknown = (estimator.expected_output(0, 1000, tenant) for tenant in (1, 2, 3))
    assert brief < 120 and long > 600 and 300 < unknown < 420
    load = load_of((100, 0, 1000))
    peaks = [
        estimator.forecast(Load(load.held, load.generated, load.allowed, load.delay, np.array([tenant]))).peak_with(
            load
        )
        for tenant in (1, 2)
    ]
    assert peaks[0] < peaks[1]
