"""What the engine tells /metrics of its scheduler: accounts of tenants, and the step cost that it has learnt."""

from __future__ import annotations

from dataclasses import asdict

from device import Harness, make_harness
from prometheus_client import parser
from prometheus_client.samples import Sample

from lightllm.metrics import Board, MetricSet
from lightllm.metrics.exposition import Exposition
from lightllm.metrics.names import for_tenants
from lightllm.scheduler.cost import StepShape
from lightllm.workers.meters import EngineMeters

NAMED = ("a=1", "b=2.5")


def test_named_tenants_have_accounts_and_the_rest_share_one() -> None:
    harness = make_harness(400, tenant_weight=NAMED)
    for tenant in ("a", "a", "b", "c", ""):
        harness.submit(range(2, 22), 1, tenant=tenant, ignore_eos=True)
        harness.step()
    tenants = harness.scheduler.counters.tenants
    assert list(tenants) == ["a", "b", "other"]
    assert (tenants["a"].queried_tokens, tenants["a"].hit_tokens) == (40, 19)
    assert (tenants["b"].queried_tokens, tenants["b"].hit_tokens, tenants["b"].generated_tokens) == (20, 19, 1)
    assert (tenants["other"].queried_tokens, tenants["other"].hit_tokens) == (40, 38)


def shown(harness: Harness, name: str) -> dict[str, float]:
    """A counter by tenant, as /metrics shows it after one reading."""
    board = Board.create(for_tenants(harness.scheduler._settings.tenant_weights))
    try:
        EngineMeters(MetricSet(board), harness.scheduler)
        text = Exposition([board]).render()[0].decode()
    finally:
        board.close()
    return {
        sample.labels["tenant"]: sample.value for sample in samples(text) if sample.name == f"lightllm_{name}_total"
    }


def samples(text: str) -> list[Sample]:
    return [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]


def test_hits_preemptions_and_refusals_are_shown_by_tenant() -> None:
    harness = make_harness(48, policy="deadline", estimator="watermark", watermark=1.0, tenant_weight=NAMED)
    for tenant in ("a", "a", "b"):
        harness.submit(range(2, 10), 24, tenant=tenant, ignore_eos=True)
    harness.submit(range(2, 10), 4, tenant="c", ttft_target=0.5, refuse_late=True)
    harness.scheduler.schedule(100.0)
    counters = harness.scheduler.counters
    assert shown(harness, "tenant_requests_refused") == {"a": 0, "b": 0, "other": 1}
    assert shown(harness, "tenant_prefix_cache_queried_tokens") == {"a": 16, "b": 8, "other": 0}
    assert shown(harness, "tenant_prefix_cache_hit_tokens")["b"] == 7
    counters.tenant("b").num_preemptions += 2
    assert shown(harness, "tenant_preemptions") == {"a": 0, "b": 2, "other": 0}


def test_the_fitted_step_cost_is_shown() -> None:
    harness = make_harness(64)
    board = Board.create()
    meters = EngineMeters(MetricSet(board), harness.scheduler)
    while harness.scheduler.step_cost is None:
        harness.scheduler._composition.observe(StepShape(1, 10), 0.5)
    meters.stepped(0.5)
    text = Exposition([board]).render()[0].decode()
    board.close()
    coefficients = {
        sample.labels["coefficient"]: sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "lightllm_step_cost_seconds"
    }
    assert coefficients == asdict(harness.scheduler.step_cost) and sum(coefficients.values()) > 0.0


def test_every_preemption_is_counted_for_its_tenant() -> None:
    harness = make_harness(64, estimator="watermark", watermark=1.0, prefix_cache=False, tenant_weight=NAMED)
    for number, tenant in enumerate(("a", "a", "b", "c")):
        harness.submit(range(10 * number, 10 * number + 8), 24, tenant=tenant, ignore_eos=True)
    harness.drain()
    counters = harness.scheduler.counters
    assert counters.num_preemptions > 0
    assert sum(tenant.num_preemptions for tenant in counters.tenants.values()) == counters.num_preemptions


def test_the_time_in_the_queue_and_to_the_first_token_is_shown_once_for_each_request() -> None:
    harness = make_harness(64, max_running=1, max_step_tokens=8, prefix_cache=False)
    board = Board.create()
    meters = EngineMeters(MetricSet(board), harness.scheduler)
    for scored in (None, 0):
        harness.submit(range(2, 22), 4, ignore_eos=True, prompt_logprobs=scored)
    harness.drain()
    for _ in range(2):
        meters.read()
        shown = {sample.name: sample.value for sample in samples(Exposition([board]).render()[0].decode())}
        name = "lightllm_request_queue_time_seconds"
        assert (shown[f"{name}_count"], shown[f"{name}_sum"]) == (2, 1 + 7)  # a step a second; 3 of prompt, 3 more
        name = "lightllm_request_prefill_time_seconds"
        assert (shown[f"{name}_count"], shown[f"{name}_sum"]) == (2, 2 + 2)
    board.close()


def test_preemption_does_not_begin_a_request_again() -> None:
    harness = make_harness(64, estimator="watermark", watermark=1.0, prefix_cache=False)
    for number in range(4):
        harness.submit(range(10 * number, 10 * number + 8), 24, ignore_eos=True)
    harness.drain()
    counters = harness.scheduler.counters
    assert counters.num_preemptions > 0
    assert len(counters.queue_seconds) == len(counters.prefill_seconds) == 4
