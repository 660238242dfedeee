"""Clients that leave, workers that die, servers that drain."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from lightllm.protocol.messages import Drain, EngineStarted, TextBatch, TextOutput, WorkerState

from .fake_engine import LiveServer, Script
from .test_faults import fault

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
Make = Callable[..., LiveServer]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_a_client_that_leaves_frees_its_choices_at_once(server: LiveServer, stream: bool, n: int) -> None:
    """Even while nothing is being sent, and all choices."""
    server.engine.script = Script(hang_after=1)
    body = httpx.Request("POST", server.url, json={"messages": HELLO, "stream": stream, "n": n}).read()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        server.wait(lambda: server.frontend.num_live == n)
        time.sleep(0.02)
        left = time.monotonic()
    ids = {submit.request_id for submit in server.engine.submits}
    server.wait(lambda: server.engine.aborted.keys() == ids)
    assert max(server.engine.aborted.values()) - left < 0.2
    assert server.frontend.num_live == 0


def test_events_are_not_held_back(server: LiveServer) -> None:
    """Without this option an event may wait for the client's delayed acknowledgement."""
    assert server.listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_closing_a_stream_early(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.script = Script(delay=0.02)
    with client.chat.completions.create(model="toy", messages=HELLO, stream=True) as stream:
        next(iter(stream))
    server.wait(lambda: len(server.engine.aborted) == 1)


def test_late_text_of_an_aborted_request_is_ignored(server: LiveServer, http: httpx.Client) -> None:
    server.outbox.send(TextBatch((TextOutput(12345, "late"),)))
    assert http.post(CHAT, json={"messages": HELLO}).status_code == 200
    assert server.engine.aborted == {}  # nothing that ended by itself is aborted


@pytest.mark.parametrize("worker", ["engine", "detokenizer"])
def test_a_worker_dies_in_a_stream(own_server: Make, worker: str) -> None:
    server = own_server()
    server.engine.script = Script(hang_after=2)
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="toy", messages=HELLO, stream=True)
        pieces = [next(stream) for _ in range(2)]
        assert pieces
        died = time.monotonic()
        server.outbox.send(WorkerState(worker, False, 1, "signal 9"))
        with pytest.raises(openai.APIError, match=f"the {worker} stopped while it served the request: signal 9"):
            list(stream)
        assert time.monotonic() - died < 0.5
        assert bool(server.engine.aborted) == (worker == "detokenizer")
        with httpx.Client(base_url=server.url) as http:
            refused = http.post(CHAT, json={"messages": HELLO})
            assert (refused.status_code, fault(refused)["code"]) == (503, "not_ready")
            assert refused.headers["retry-after"] == "2"
            assert http.get("/ready").status_code == 503 == http.get("/health").status_code
            assert http.get("/live").status_code == 200
            server.outbox.send(WorkerState(worker, False, 0, "stale"))
            server.engine.script = Script()
            facts = server.frontend.facts if worker == "engine" else {}
            server.outbox.send(WorkerState(worker, True, 2, facts=facts))
            server.wait(lambda: server.frontend.ready)
            server.outbox.send(WorkerState(worker, False, 1, "a late word on the old one"))
            assert http.post(CHAT, json={"messages": HELLO}).status_code == 200
            assert http.get("/ready").status_code == 200


def test_a_worker_dies_under_a_whole_answer(own_server: Make) -> None:
    server = own_server()
    server.engine.script = Script(hang_after=1)
    with httpx.Client(base_url=server.url, timeout=5) as http:
        import threading

        found: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: found.append(http.post(CHAT, json={"messages": HELLO, "n": 2})))
        thread.start()
        server.wait(lambda: server.frontend.num_live == 2)
        server.outbox.send(EngineStarted(2))
        thread.join(5)
    assert (found[0].status_code, fault(found[0])["code"]) == (503, "worker_died")
    assert not server.frontend.ready and server.frontend.num_live == 0


def test_readiness_follows_the_workers(own_server: Make) -> None:
    server = own_server(ready=False)
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/live").status_code == 200
        response = http.get("/ready")
        assert response.status_code == 503 and "engine is starting" in fault(response)["message"]
        assert http.post(CHAT, json={"messages": HELLO}).status_code == 503
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] is None
        server.start_workers()
        assert http.get("/ready").json() == {"status": "ok"}
        assert len(server.engine.submits) == 1  # a token was generated to be sure
        assert http.get("/readiness").status_code == 200 and len(server.engine.submits) == 1  # and that is recent


def test_an_engine_that_hangs_is_not_ready(own_server: Make) -> None:
    server = own_server()
    server.engine.script = Script(hang_after=0)
    kept = server.frontend.can_generate
    server.frontend.can_generate = lambda timeout=0.1: kept(timeout)  # type: ignore[method-assign,assignment]
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/ready").status_code == 503 and http.get("/health").status_code == 200
    assert len(server.engine.aborted) == 1


def test_drain_lets_live_answers_finish(own_server: Make) -> None:
    server = own_server()
    server.engine.script = Script(delay=0.02)
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client,
        httpx.Client(base_url=server.url) as http,
    ):
        assert http.get("/live").status_code == 200
        stream = client.chat.completions.create(model="toy", messages=HELLO, stream=True)
        next(stream)
        server.outbox.send(Drain(5.0))
        server.wait(lambda: server.frontend.draining)
        refused = http.post(CHAT, json={"messages": HELLO})
        assert (refused.status_code, fault(refused)["code"]) == (503, "draining")
        assert refused.headers["retry-after"] == "5" and http.get("/ready").status_code == 503
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"
    server.thread.join(5)
    assert not server.thread.is_alive()


def test_drain_has_a_deadline(own_server: Make) -> None:
    server = own_server()
    server.engine.script = Script(hang_after=1)
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="toy", messages=HELLO, stream=True)
        next(stream)
        server.wait(lambda: server.frontend.num_live == 1)
        server.outbox.send(Drain(0.1))
        with pytest.raises(openai.APIError, match="stopped before the answer was complete"):
            list(stream)
    server.thread.join(5)
    assert not server.thread.is_alive() and len(server.engine.aborted) == 1


def test_a_silent_stream_is_kept_alive(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.server.streaming.KEEP_ALIVE_SECONDS", 0.05)
    server.engine.script = Script(hang_after=1)
    with httpx.stream("POST", server.url + CHAT, json={"messages": HELLO, "stream": True}) as response:
        lines = response.iter_lines()
        assert any(line == ": keep-alive" for line in lines)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a", "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
        ("/generate_stream", {"inputs": "a", "parameters": {}}),
    ],
)
def test_what_the_engine_refuses_at_once_is_no_success(
    server: LiveServer, http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    server.engine.script = Script(error=(0, ("invalid_request", "tpot_target is beyond reach", "tpot_target")))
    response = http.post(path, json=body)
    error = fault(response)
    assert (response.status_code, error["message"]) == (400, "tpot_target is beyond reach")
    assert error["param"] == "tpot_target"
    server.engine.script = Script(error=(2, ("engine_error", "it broke")))
    response = http.post(path, json=body)
    assert response.status_code == 200 and "it broke" in response.text


def test_a_stream_begins_though_its_first_token_is_late(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.server.streaming.REFUSAL_SECONDS", 0.05)
    server.engine.script = Script(hang_after=0)
    body = {"messages": [{"role": "user", "content": "a"}], "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.status_code == 200 and next(response.iter_lines()).startswith("data: ")
