"""Boards merged and shown: read back by the parsers of prometheus_client."""

import json
import math

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from lightllm.metrics import Board, MetricSet, names
from lightllm.metrics.exposition import Exposition

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def boards():
    boards = [Board.create() for _ in range(3)]
    for number, board in enumerate(boards[:2], 1):
        metrics = MetricSet(board)
        metrics.counter(names.REQUESTS_FINISHED, finish_reason="stop").inc(number)
        metrics.gauge(names.REQUESTS_RUNNING).set(number * 10)
        metrics.gauge(names.KV_CACHE_USAGE).set(number / 4)
        metrics.gauge(names.PROCESS_START_TIME).set(1000 + number)
        metrics.histogram(names.INTER_TOKEN_LATENCY).observe_many([0.01, 0.02, 100.0 * number])
        metrics.counter(names.HTTP_REQUESTS, route="/health", status="200").inc()
    yield boards
    for board in boards:
        board.close()


def samples(text, parse=parser.text_string_to_metric_families):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def check_values(found):
    assert found["lightllm_requests_finished_total", ("finish_reason", "stop")] == 3
    assert found["lightllm_requests_finished_total", ("finish_reason", "abort")] == 0
    assert found["lightllm_requests_running",] == 30
    assert found["lightllm_kv_cache_usage_ratio",] == 0.5
    assert found["lightllm_process_start_time_seconds",] == 1001
    assert found["lightllm_inter_token_latency_seconds_count",] == 6
    assert found["lightllm_inter_token_latency_seconds_sum",] == pytest.approx(300.06)
    assert found["lightllm_inter_token_latency_seconds_bucket", ("le", "0.01")] == 2
    assert found["lightllm_inter_token_latency_seconds_bucket", ("le", "0.025")] == 4
    assert found["lightllm_inter_token_latency_seconds_bucket", ("le", "80.0")] == 4
    assert found["lightllm_inter_token_latency_seconds_bucket", ("le", "+Inf")] == 6


def test_prometheus_text(boards):
    text, content_type = Exposition(boards).render()
    assert content_type.startswith("text/plain")
    check_values(samples(text.decode()))


def test_openmetrics_text(boards):
    text, content_type = Exposition(boards).render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    check_values(samples(text.decode(), openmetrics.text_string_to_metric_families))


def test_every_metric_is_exposed_with_its_help(boards):
    families = {
        family.name: family
        for family in openmetrics.text_string_to_metric_families(
            Exposition(boards, info={"version": "1"}).render(OPENMETRICS)[0].decode()
        )
    }
    for metric in names.ALL:
        family = families[metric.name.removesuffix("_info")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)


def test_zero_series_of_sparse_metrics_are_left_out(boards):
    found = samples(Exposition(boards).render()[0].decode())
    assert [key for key in found if key[0] == "lightllm_http_requests_total"] == [
        ("lightllm_http_requests_total", ("route", "/health"), ("status", "200"))
    ]


def test_gauges_nobody_set():
    board = Board.create()
    found = samples(Exposition([board]).render()[0].decode())
    assert found["lightllm_requests_running",] == 0  # a sum of nothing
    assert ("lightllm_kv_cache_usage_ratio",) not in found  # the largest of nothing
    board.close()


def test_info_and_constant_labels(boards):
    awkward = 'a "quoted"\\ name\n'
    exposition = Exposition(boards, info={"version": "1.2"}, labels={"model_name": awkward})
    found = samples(exposition.render()[0].decode())
    assert found["lightllm_server_info", ("model_name", awkward), ("version", "1.2")] == 1
    assert all(("model_name", awkward) in key for key in found)


def test_snapshot_is_json_and_says_the_same(boards):
    snapshot = json.loads(json.dumps(Exposition(boards, info={"version": "1"}).snapshot(), allow_nan=False))
    assert list(snapshot) == [metric.exposed_name for metric in names.ALL]
    finished = snapshot["lightllm_requests_finished_total"]
    assert finished["kind"] == "counter"
    assert finished["series"][0] == {"labels": {"finish_reason": "stop"}, "value": 3}
    latency = snapshot["lightllm_inter_token_latency_seconds"]["series"][0]
    assert latency["count"] == 6
    assert math.isclose(latency["sum"], 300.06)
    assert latency["buckets"]["0.01"] == 2 and latency["buckets"]["+Inf"] == 2
    assert sum(latency["buckets"].values()) == 6


def test_a_board_is_shown_as_it_is_now(boards):
    exposition = Exposition(boards)
    counter = MetricSet(boards[2]).counter(names.PREEMPTIONS)
    for expected in (1, 2):
        counter.inc()
        assert samples(exposition.render()[0].decode())["lightllm_preemptions_total",] == expected
