"""What a connection does with clients that are slow, silent, endless or speak no HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from .fake_engine import LiveServer, Script

Make = Callable[..., LiveServer]
PATIENCE = 10.0
GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(server.listening.getsockname(), PATIENCE)


def post(body: bytes, *, length: int | None = None, headers: bytes = b"") -> bytes:
    announced = len(body) if length is None else length
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % announced
    return head + headers + b"\r\n" + body


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def refusal(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of the last response."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert b"application/json" in head and b"connection: close" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), error


@pytest.mark.parametrize("sent", [GET[:-2], b"G", b"POST /tokenize HTTP/1.1\r\nContent-Len"])
def test_headers_that_never_end(own_server: Make, sent: bytes) -> None:
    with connect(own_server(upload_seconds=0.2)) as connection:
        connection.sendall(sent)
        status, error = refusal(read_to_end(connection))
    assert (status, error["code"]) == (408, "request_timeout") and "0.2 s" in error["message"]


def test_a_body_that_never_ends(own_server: Make) -> None:
    server = own_server(upload_seconds=0.3)
    with connect(server) as connection:
        connection.sendall(post(b'{"prompt"', length=100))
        status, error = refusal(read_to_end(connection))
    assert (status, error["code"]) == (408, "request_timeout")
    assert error["message"] == "the body did not arrive within 0.3 s; 9 bytes came"


def test_a_drip_does_not_buy_time(own_server: Make) -> None:
    server = own_server(upload_seconds=0.4)
    with connect(server) as connection:
        begun = time.monotonic()
        connection.sendall(b"GET /live HTTP/1.1\r\nX-Drip: ")
        connection.settimeout(0.02)
        answer = b""
        while not answer and time.monotonic() - begun < PATIENCE:
            connection.sendall(b"a")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert refusal(answer)[0] == 408


def test_the_rest_of_a_refused_body_is_not_read_for_ever(own_server: Make) -> None:
    server = own_server(upload_seconds=0.3, max_body_bytes=1000)
    with connect(server) as connection:
        connection.sendall(post(b"a" * 10, length=1 << 30))
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and answer.count(b"HTTP/1.1") == 1


def test_a_long_answer_is_not_cut_by_the_clock(own_server: Make) -> None:
    server = own_server(upload_seconds=0.1)
    server.engine.script = Script(delay=0.02)
    with connect(server) as connection:
        stream = json.dumps({"prompt": "a", "max_tokens": 20, "stream": True}).encode()
        connection.sendall(post(stream) + b"\r\n" + GET[:-2])  # half of the next request is here already
        status, error = refusal(answer := read_to_end(connection))
    assert b"[DONE]" in answer and (status, error["code"]) == (408, "request_timeout")


def test_silent_connections_are_closed(own_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.server.process.IDLE_CONNECTION_SECONDS", 0.1)
    with connect(own_server()) as fresh:
        assert read_to_end(fresh) == b""


def test_endless_headers(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nX-Long: ")
        answer = b""
        try:
            for _ in range(1000):
                connection.sendall(b"a" * 65536)
            answer = read_to_end(connection)
        except ConnectionError:
            pass  # closed while we wrote; what it answered may be lost then
        else:
            raise AssertionError("64 MB of headers were taken")
    assert not answer


def test_large_headers_are_refused_by_name(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nX-Long: ")
        time.sleep(0.05)
        connection.sendall(b"a" * ((1 << 16) + 1))
        status, error = refusal(read_to_end(connection))
    assert (status, error["code"]) == (431, "headers_too_large") and "65536" in error["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"FOO /live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_no_http(server: LiveServer, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        status, error = refusal(read_to_end(connection))
    assert (status, error["code"]) == (400, "invalid_request")


def test_garbage_behind_a_request_ends_its_work_quietly(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.script = Script(hang_after=1)
    with connect(server) as connection:
        connection.sendall(post(b'{"prompt": "a", "stream": true}'))
        assert connection.recv(20).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\0\0\0")
        assert b"HTTP/1.1 400" not in read_to_end(connection)
    server.wait(lambda: len(server.engine.aborted) == 1)
    assert "Traceback" not in caplog.text


def test_an_upgrade_that_is_not_offered_changes_nothing(server: LiveServer) -> None:
    """Some clients ask every plain server for HTTP/2."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    body = b'{"prompt": "a", "max_tokens": 1}'
    for _ in range(2):
        with connect(server) as connection:
            connection.sendall(post(body, headers=upgrade))
            answer = b""
            while b"usage" not in answer:
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
