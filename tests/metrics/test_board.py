"""One board: offsets, kinds, labels, other processes."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lightllm.metrics
from lightllm.errors import ProtocolError
from lightllm.metrics import Board, BoardHandle, Metric, MetricSet, names
from lightllm.metrics.board import Layout

ROOT = Path(lightllm.metrics.__file__).parents[2]


@pytest.fixture
def board():
    board = Board.create()
    yield board
    board.close()


def test_series_do_not_overlap():
    layout = Layout(names.ALL)
    places = [
        place
        for metric in names.ALL
        for start in layout.offsets[metric.name].values()
        for place in range(start, start + metric.width)
    ]
    assert sorted(places) == list(range(layout.size))


def test_every_write_is_seen_alone(board):
    metrics = MetricSet(board)
    metrics.counter(names.PREEMPTIONS).inc()
    metrics.counter(names.PREEMPTIONS).inc(2)
    metrics.counter(names.REQUESTS_FINISHED, finish_reason="length").inc(5)
    metrics.gauge(names.REQUESTS_RUNNING).set(7)
    values = [value for value in board.read() if value and not math.isnan(value)]
    assert sorted(values) == [3, 5, 7]


@given(st.lists(st.floats(0, 10), max_size=50))
def test_observe_and_observe_many_agree(observed):
    first, second = Board.create(), Board.create()
    one = MetricSet(first).histogram(names.TIME_TO_FIRST_TOKEN)
    MetricSet(second).histogram(names.TIME_TO_FIRST_TOKEN).observe_many(observed)
    for value in observed:
        one.observe(value)
    start = first.layout.offsets[names.TIME_TO_FIRST_TOKEN.name][()]
    width = names.TIME_TO_FIRST_TOKEN.width
    of_one, of_many = (board.read()[start : start + width] for board in (first, second))
    assert of_one[:-1] == of_many[:-1]
    assert of_one[-1] == pytest.approx(of_many[-1])
    assert sum(of_one[:-1]) == len(observed)
    first.close()
    second.close()


def test_a_value_on_a_bound_is_in_its_bucket(board):
    histogram = MetricSet(board).histogram(names.STEP_TOKENS_RUN)
    histogram.observe(8.0, 3)
    histogram.observe(8.5)
    histogram.observe(1e9)
    start = board.layout.offsets[names.STEP_TOKENS_RUN.name][()]
    counts = board.read()[start : start + names.STEP_TOKENS_RUN.width]
    assert counts[:3] == [0, 3, 1]
    assert counts[-2:] == [1, 1e9 + 24 + 8.5]


def test_gauge_adds_from_unset(board):
    gauge = MetricSet(board).gauge(names.REQUESTS_WAITING)
    gauge.add(2)
    gauge.add(-1)
    assert [value for value in board.read() if value and not math.isnan(value)] == [1]


def test_a_successor_continues_counters_and_resets_gauges(board):
    first = MetricSet(board)
    first.counter(names.ENGINE_STEPS).inc(10)
    first.gauge(names.REQUESTS_RUNNING).set(3)
    second = MetricSet(board)
    second.counter(names.ENGINE_STEPS).inc()
    assert [value for value in board.read() if value and not math.isnan(value)] == [11]


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        (names.REQUESTS_RUNNING, {}, "is a gauge, not a counter"),
        (names.PREEMPTIONS, {"reason": "stop"}, "has the labels"),
        (names.REQUESTS_FINISHED, {}, "finish_reason"),
        (names.REQUESTS_FINISHED, {"finish_reason": "bored"}, "'stop', 'length', 'abort', 'error'.*'bored'"),
    ],
)
def test_misuse_is_refused(board, metric, labels, message):
    with pytest.raises(ValueError, match=message):
        MetricSet(board).counter(metric, **labels)


def test_unknown_values_count_as_other(board):
    MetricSet(board).counter(names.HTTP_REQUESTS, route="/wp-login.php", status="418").inc()
    place = board.layout.offsets[names.HTTP_REQUESTS.name]["other", "other"]
    assert board.read()[place] == 1


def test_a_board_of_other_metrics_is_refused(board):
    with pytest.raises(ProtocolError, match="not a board of these metrics"):
        Board.attach(BoardHandle(memory=os.dup(board.fds[0])), names.ALL[:3])


def test_handle_is_json(board):
    assert BoardHandle.from_json(board.handle().to_json()) == board.handle()


def test_closing_leaves_no_descriptor():
    before = set(os.listdir("/proc/self/fd"))
    board = Board.create()
    board.close()
    assert set(os.listdir("/proc/self/fd")) == before


WRITER = """
import sys
from lightllm.metrics import Board, BoardHandle, MetricSet, names
metrics = MetricSet(Board.attach(BoardHandle.from_json(sys.argv[1])))
counter, histogram = metrics.counter(names.ENGINE_STEPS), metrics.histogram(names.STEP_DURATION)
metrics.gauge(names.REQUESTS_RUNNING).set(4)
while True:
    counter.inc()
    histogram.observe(0.002)
"""


def test_a_killed_writer_leaves_what_it_wrote(board):
    place = board.layout.offsets[names.ENGINE_STEPS.name][()]
    start = board.layout.offsets[names.STEP_DURATION.name][()]
    steps = 0.0
    for _ in range(2):
        command = [sys.executable, "-c", WRITER, board.handle().to_json()]
        child = subprocess.Popen(command, pass_fds=board.fds, env=os.environ | {"PYTHONPATH": str(ROOT)})
        deadline = time.monotonic() + 20
        while board.values[place] < steps + 1000:
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.005)
        child.kill()
        child.wait()
        numbers = board.read()
        assert numbers[place] >= steps + 1000
        steps = numbers[place]
        observed = sum(numbers[start : start + names.STEP_DURATION.width - 1])
        assert abs(steps - observed) <= 2  # at most one short per life
        assert steps == int(steps)


def test_names_are_well_formed():
    assert len({metric.name for metric in names.ALL}) == len(names.ALL)
    for metric in names.ALL:
        assert metric.name.startswith(names.PREFIX)
        assert not metric.name.endswith("_total")
        assert metric.help.endswith(".")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")


def test_all_holds_every_declaration():
    declared = [value for value in vars(names).values() if isinstance(value, Metric)]
    assert list(names.ALL) == declared


def test_describe_has_a_row_for_each():
    rows = names.describe()
    assert [row.name for row in rows] == [metric.exposed_name for metric in names.ALL]
    finished = next(row for row in rows if row.name == "lightllm_requests_finished_total")
    assert finished.labels == "finish_reason: stop, length, abort, error"
    assert finished.merge == ""
