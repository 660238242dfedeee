"""Step cost: file, fit, and how many prompt tokens a step takes under a target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from device import make_harness

from lightllm.config.settings import SchedulerSettings
from lightllm.errors import ConfigError, InvalidRequest
from lightllm.protocol.messages import Submit, pack_ids
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.composition import LEAST_CHUNK, Composition
from lightllm.scheduler.cost import OnlineStepCost, StepCost, StepShape, load_step_cost
from lightllm.simulate.clients import OpenLoop
from lightllm.simulate.simulation import Setup, Simulation
from lightllm.simulate.workload import Job

COST = StepCost(0.01, 1e-4, 1e-6, 0.0)


def test_the_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    COST.save(path, model="tiny", machine="here")
    assert load_step_cost(path) == COST


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "is not a lightllm-step-cost file of version 1"),
        ('{"format": "lightllm-step-cost", "version": 2}', "version 1"),
        ('{"format": "lightllm-step-cost", "version": 1, "seconds": {"base": 1}}', "needs 'seconds' with base"),
        (
            '{"format": "lightllm-step-cost", "version": 1, "seconds": {"base": 1, "per_token": -1}}',
            "per_token must be at least 0, got -1",
        ),
        (
            '{"format": "lightllm-step-cost", "version": 1, "seconds": {"base": 0, "per_token": 0.0}}',
            "a step must take some time",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "cost.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_step_cost(path)


def test_the_fit_finds_the_coefficients() -> None:
    truth = StepCost(0.008, 7e-5, 3e-7, 2e-9)
    online = OnlineStepCost()
    random = np.random.default_rng(0)
    for _ in range(300):
        prompt = int(random.integers(0, 2000)) * int(random.integers(0, 2))
        shape = StepShape(prompt + int(random.integers(1, 200)), int(random.integers(0, 100_000)), prompt * 3000.0)
        online.observe(shape, truth.seconds(shape) * float(random.normal(1.0, 0.02)))
    assert online.cost is not None
    for shape in (StepShape(64, 50_000), StepShape(2048, 20_000, 4e6)):
        assert online.cost.seconds(shape) == pytest.approx(truth.seconds(shape), rel=0.05)


def composition(tmp_path: Path, target: float | None) -> Composition:
    path = tmp_path / "cost.json"
    COST.save(path)
    return Composition(SchedulerSettings(max_step_tokens=2048, tpot_target=target, step_cost=str(path)))


def test_prompts_get_what_the_target_leaves(tmp_path: Path) -> None:
    # 0.05 - 0.01 - 100 * 1e-4 - 10_000 * 1e-6 = 0.02 s, which is 200 tokens
    assert composition(tmp_path, 0.05).prompt_tokens(100, 10_000, np.inf) == 200
    assert composition(tmp_path, None).prompt_tokens(100, 10_000, np.inf) == 1948
    assert composition(tmp_path, None).prompt_tokens(100, 10_000, 0.05) == 200, "the strictest request counts"
    assert composition(tmp_path, 0.05).prompt_tokens(0, 0, np.inf) == 2048, "nobody decodes, nobody waits"
    assert composition(tmp_path, 0.011).prompt_tokens(100, 10_000, np.inf) == LEAST_CHUNK, "prompts go on"


def test_an_impossible_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tpot_target of 0.005 s cannot be met: a step takes at least 0.0101 s"):
        composition(tmp_path, 0.005)


@pytest.mark.parametrize("name", ["ttft_target", "tpot_target"])
def test_a_request_with_an_impossible_target_is_refused(tmp_path: Path, name: str) -> None:
    COST.save(tmp_path / "cost.json")
    harness = make_harness(64, step_cost=str(tmp_path / "cost.json"))
    message = rf"{name} of 0.005 s cannot be met: a step takes at least 0.0101 s"
    with pytest.raises(InvalidRequest, match=message) as caught:
        harness.submit([2, 3], 4, **{name: 0.005})
    assert caught.value.param == name and harness.scheduler.num_requests == 0
    harness.submit([2, 3], 4, **{name: 0.0102})


def test_without_a_known_cost_only_what_is_far_below_small_steps_is_refused() -> None:
    fitted = Composition(SchedulerSettings(max_step_tokens=2048))
    anything = Submit(0, pack_ids([2]), SamplingParams(), 1, 0, 0.0, tpot_target=1e-9)
    fitted.check_targets(anything)
    for _ in range(64):
        fitted.observe(StepShape(2048, 0), 0.3)
    fitted.check_targets(anything)  # large steps say nothing of small ones
    for tokens in range(32, 0, -1):
        fitted.observe(StepShape(tokens, 0), 0.01 + 1e-4 * tokens)
        fitted.observe(StepShape(tokens, 0), 0.0)
    fitted.observe(StepShape(1, 0), 0.7)  # a step that waited for something
    assert fitted.least_seconds == pytest.approx(0.00505)
    with pytest.raises(InvalidRequest, match="tpot_target of 1e-09 s cannot be met"):
        fitted.check_targets(anything)


@pytest.mark.parametrize("target", [None, 0.04])
def test_decode_gaps_stay_under_the_target(target: float | None) -> None:
    """Long prompts arrive while others decode; the cost is learnt on the way."""
    settings = SchedulerSettings(max_running=64, max_step_tokens=2048, tpot_target=target)
    jobs = [Job(np.full(2000, 7 + number, np.int32), 100, 200, arrival=number * 0.5) for number in range(60)]
    simulation = Simulation(Setup(settings, COST, 60_000), OpenLoop(iter(jobs), None, 0), longest=4000)
    record = simulation.run(lambda _: False)
    learnt = [life.max_gap for life in record.ended if life.arrival > 5.0]
    assert len(record.ended) == 60
    if target is None:
        assert max(learnt) > 0.15
    else:
        assert max(learnt) < 1.1 * target
