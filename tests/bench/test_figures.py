"""What the benchmarks compute from what they saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightllm.bench.bounds import Machine, ModelWork, StepWork
from lightllm.bench.cost_fit import fit_step_cost, relative_error
from lightllm.bench.latency import Limits, LoadResult
from lightllm.bench.load import Served
from lightllm.bench.pipeline import Step
from lightllm.bench.report import command_line
from lightllm.bench.summary import Summary
from lightllm.bench.tables import count, format_table, seconds
from lightllm.bench.workloads import SHAPES, make_requests, parse_range
from lightllm.errors import ConfigError
from lightllm.layers.rotary import parse_rope
from lightllm.models.decoder import DecoderSpec
from lightllm.protocol.plan import StepPlan
from lightllm.scheduler.cost import StepCost, StepShape


def test_workloads_are_drawn_within_their_ranges() -> None:
    requests = make_requests(SHAPES["ragged"], vocab_size=1000, seed=4)
    assert len(requests) == 256
    assert {100 <= len(r.prompt) <= 1024 and 100 <= r.output_len <= 1024 for r in requests} == {True}
    assert max(int(r.prompt.max()) for r in requests) < 1000
    again = make_requests(SHAPES["ragged"], vocab_size=1000, seed=4)
    assert all(np.array_equal(a.prompt, b.prompt) for a, b in zip(requests, again, strict=True))


@pytest.mark.parametrize(
    "given", ["--api-key secret --json out.json", "--api_key=secret --json=-", "--json out.json --api-key=secret"]
)
def test_a_report_tells_no_key(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/lightllm", "bench", "serve", *given.split(), "--requests", "2"])
    assert command_line() == "lightllm bench serve --requests 2"


def test_workloads_share_no_prefix() -> None:
    """Else one would find another's prompts in the prefix cache."""
    shapes = [*SHAPES.values(), *(shape.scaled(4, (64, 64), (8, 8)) for shape in SHAPES.values())]
    drawn = [make_requests(shape, 100_000, seed) for seed, shape in enumerate(shapes * 2)]
    starts = [tuple(request.prompt[:3]) for requests in drawn for request in requests]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize(("text", "span"), [("128", (128, 128)), ("16-256", (16, 256)), (None, None)])
def test_ranges(text: str | None, span: tuple[int, int] | None) -> None:
    assert parse_range(text, "input_len") == span


@pytest.mark.parametrize("text", ["", "0", "-5", "9-3", "1-2-3", "many", "\u00b2"])
def test_bad_ranges_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="input_len"):
        parse_range(text, "input_len")


def test_the_bound_counts_weights_kv_and_operations() -> None:
    rope = parse_rope(None, 1e4, 8, 64)
    spec = DecoderSpec(16, 2, 2, 1, 8, 32, 100, 64, 1e-6, rope)
    model = ModelWork.of(spec, torch.float32)
    block = 16 * (16 + 8 + 8) + 16 * 16 + 3 * 16 * 32
    assert (model.block_params, model.head_params) == (2 * block, 1600)
    int32 = np.int32
    plan = StepPlan(
        0,
        rows=np.array([0, 1], int32),
        starts=np.array([10, 4], int32),
        lens=np.array([1, 3], int32),
        slots=np.arange(4, dtype=int32),
        sampled=np.array([True, False]),
        prompt_logprobs=np.array([False, False]),
    )
    work = StepWork.of(plan)
    assert work == StepWork(num_tokens=4, num_logits=1, attended=18, pairs=11 + (5 + 6 + 7), wanted=11)
    last = 16 * 16 + 3 * 16 * 32  # what follows attention in the last block is computed for one token
    kv = 2 * 8 * 4
    assert model.bytes_of(work) == (2 * block + 1600) * 4 + kv * (18 + 11 + 2 * 4)
    assert model.flops_of(work) == 2 * 4 * (2 * block - last) + 2 * (last + 1600) + 4 * 16 * (29 + 11)
    unsampled = StepWork(num_tokens=4, num_logits=0, attended=18, pairs=29, wanted=0)
    assert model.bytes_of(unsampled) == (2 * block - last) * 4 + kv * (18 + 2 * 4)
    assert model.bound(work, Machine(bandwidth=1.0, peak=1e12)) == model.bytes_of(work)


def test_a_cost_model_is_found_again_from_its_own_steps() -> None:
    true = StepCost(base=0.01, per_token=1e-4, per_context=2e-7, per_pair=0.0)
    rng = np.random.default_rng(0)
    shapes = [StepShape(int(rng.integers(1, 500)), int(rng.integers(0, 90000))) for _ in range(40)]
    work = StepWork(1, 1, 1, 1, 1)
    steps = [Step(shape, work, 1, true.seconds(shape)) for shape in shapes]
    found = fit_step_cost(steps)
    assert found is not None and relative_error(found, steps) < 1e-6
    assert found.per_context == pytest.approx(2e-7)
    assert fit_step_cost(steps[:3]) is None
    unmeasured = Step(shapes[0], work, 1, 0.0)
    assert fit_step_cost([unmeasured, *steps]) == found and relative_error(found, [unmeasured, *steps]) < 1e-6


def test_latencies_and_goodput() -> None:
    fast = Served([0.1, 0.2, 0.3], end=0.3, prompt_tokens=10, output_tokens=3)
    slow = Served([1.0, 1.1, 2.0], end=2.0, prompt_tokens=10, output_tokens=5)
    broken = Served(end=0.1, error="status 400")
    result = LoadResult.of([fast, slow, broken], 2.0, Limits(ttft=0.5))
    assert (result.completed, result.failed, result.good_requests) == (2, 1, 1)
    assert (result.output_rate, result.good_output_rate) == (4.0, 1.5)
    assert result.tpot.largest == pytest.approx(0.25)
    assert result.mtpot.largest == pytest.approx(0.9)
    assert result.errors == {"status 400": 1}
    assert LoadResult.of([slow], 2.0, Limits(mtpot=0.5)).good_requests == 0
    assert "-" in LoadResult.of([broken], 1.0, Limits()).table()


def test_summary_and_tables() -> None:
    assert Summary.of([]) == Summary()
    assert Summary.of([1.0, 3.0]).p50 == 2.0
    assert [seconds(v) for v in (0.0123, 1.5, 2e-5)] == ["12.3 ms", "1.5 s", "20 us"]
    assert [count(v) for v in (12345.6, 12.34, 1.234)] == ["12,346", "12.3", "1.23"]
    assert format_table(("a", "bb"), [["xyz", "1"]]) == "a    bb\n---  --\nxyz   1"
