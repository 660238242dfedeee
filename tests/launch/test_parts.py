"""The parts of the supervisor that need none of its processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lightllm import launch
from lightllm.config.settings import ModelSettings, ServerSettings, Settings
from lightllm.errors import ConfigError
from lightllm.ipc import Poller, Ring, RingReader, RingReceiver, RingSender, RingWriter
from lightllm.ipc.merged import MergedReceiver
from lightllm.launch import backoff
from lightllm.launch.backoff import Backoff
from lightllm.launch.listening import listen, url_of
from lightllm.launch.signals import Signals
from lightllm.launch.stall import StallWatch
from lightllm.metrics import Board, MetricSet, names
from lightllm.workers.process import SUPERVISOR


def test_pauses_double_up_to_a_limit_and_begin_anew_after_health() -> None:
    pauses = Backoff()
    assert [pauses.failed(0.0) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert pauses.failed(backoff.HEALTHY_SECONDS) == 0.5
    assert not pauses.exhausted
    for _ in range(backoff.MOST_FAILURES - 1):
        pauses.failed(backoff.HEALTHY_SECONDS - 1)
    assert pauses.exhausted


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create()
    yield board
    board.close()


def test_an_engine_is_stalled_only_with_work_and_without_steps(board: Board) -> None:
    metrics = MetricSet(board)
    running, steps = metrics.gauge(names.REQUESTS_RUNNING), metrics.counter(names.ENGINE_STEPS)
    watch = StallWatch(board, 60.0)
    watch.reset(0.0)
    assert not watch.stalled(False, 100.0), "it has nothing to do"
    running.set(1)
    assert not watch.stalled(False, 150.0)
    assert watch.stalled(False, 161.0)
    steps.inc()
    assert not watch.stalled(False, 162.0)
    running.set(0)
    assert not watch.stalled(False, 200.0)
    assert not watch.stalled(True, 259.0)
    assert watch.stalled(True, 261.0), "it does not read its messages"
    watch.reset(262.0)
    assert not watch.stalled(True, 263.0)


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        settings = Settings(server=ServerSettings(port=port))
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is in use; .* --port") as caught:
            launch.serve(settings)
    assert caught.value.param == "port"


@pytest.mark.parametrize(
    ("host", "words"), [("no.such.host.invalid", "--host"), ("192.0.2.1", "no address of this machine")]
)
def test_an_address_that_is_none_says_what_to_do(host: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host.endswith("invalid"):

        def nobody(*args: object, **kwargs: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(ConfigError, match=words):
        listen(host, 8000)


def test_the_address_of_a_listener_is_one_that_clients_can_use() -> None:
    with listen("0.0.0.0", 0) as everywhere:
        assert url_of(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"


def test_an_unknown_model_is_refused_and_frees_the_port() -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    settings = Settings(model=ModelSettings(model="./no/such/model"), server=ServerSettings(port=port))
    with pytest.raises(ConfigError, match="no/such/model"):
        launch.serve(settings)
    listen("127.0.0.1", port).close()


def test_signals_wake_a_poller_and_keep_their_order() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = Signals()
    try:
        poller: Poller[Signals] = Poller([signals])
        assert poller.wait(0.01) == []
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert poller.wait(5.0) == [signals]
        assert signals.take() == [signal.SIGTERM, signal.SIGINT]
        assert poller.wait(0.01) == []
    finally:
        signals.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_every_worker_has_a_link_to_the_supervisor_and_back() -> None:
    topology = launch.serving_topology(2)
    pairs = {(link.writer, link.reader) for link in topology.all_links}
    for spec in topology.workers:
        assert {(SUPERVISOR, spec.name), (spec.name, SUPERVISOR)} <= pairs
    assert {("frontend-1", "engine"), ("detokenizer", "frontend-1"), ("detokenizer", "engine")} <= pairs


class TestMergedReceiver:
    @pytest.fixture
    def ends(self) -> Iterator[tuple[list[RingSender[bytes]], MergedReceiver[bytes]]]:
        with ExitStack() as stack:
            rings = [Ring.create(4096) for _ in range(2)]
            merged = MergedReceiver([RingReceiver(RingReader(ring), bytes) for ring in rings])
            stack.callback(merged.close)
            yield [RingSender(RingWriter(ring), bytes) for ring in rings], merged

    def test_it_is_woken_by_each(self, ends: tuple[list[RingSender[bytes]], MergedReceiver[bytes]]) -> None:
        senders, merged = ends

        async def both() -> list[list[bytes]]:
            loop = asyncio.get_running_loop()
            batches = []
            for number, sender in enumerate(senders):
                loop.call_later(0.02, sender.send, bytes([number]))
                batches.append(await asyncio.wait_for(merged.next(), 0.9))
            return batches

        assert asyncio.run(both()) == [[b"\0"], [b"\1"]]
        assert not merged.wait(0.01)

    def test_the_first_named_is_heard_first(self, ends: tuple[list[RingSender[bytes]], MergedReceiver[bytes]]) -> None:
        senders, merged = ends
        senders[1].send(b"later")
        senders[0].send(b"first")
        assert not merged.arm()
        assert merged.receive() == [b"first", b"later"]
        assert merged.arm()
        merged.disarm()


def test_a_server_may_hold_as_many_connections_as_the_system_lets_it() -> None:
    code = (
        "import resource as r; from lightllm.launch.listening import allow_many_connections as allow\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard)); allow()\n"
        "assert r.getrlimit(r.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
