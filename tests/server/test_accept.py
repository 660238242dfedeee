"""How connections are taken from the socket that all frontends share."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lightllm.config.settings import ServerSettings
from lightllm.server import process

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class Listener:
    """A listening socket that cannot open more files for a while."""

    def __init__(self, real: socket.socket, failures: int) -> None:
        self.real, self.failures = real, failures
        self.fileno, self.close = real.fileno, real.close

    def accept(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return self.real.accept()


def with_server(failures: int, scenario: Callable[[process._Server, Listener], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        real = socket.create_server(("127.0.0.1", 0), backlog=64)
        real.setblocking(False)
        listener = Listener(real, failures)
        server = process._Server(process._config(app, ServerSettings()))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup([listener])  # type: ignore[list-item]
        await scenario(server, listener)
        await server.shutdown([listener])  # type: ignore[list-item]

    asyncio.run(main())


async def answers(clients: list[socket.socket]) -> list[bytes]:
    loop = asyncio.get_running_loop()
    for client in clients:
        client.setblocking(False)
        await loop.sock_sendall(client, REQUEST)
    found = []
    for client in clients:
        data = b""
        while part := await loop.sock_recv(client, 1 << 16):
            data += part
        found.append(data)
        client.close()
    return found


def test_a_burst_of_connections_is_taken_a_few_at_a_time() -> None:
    """So that another frontend may take some, too."""

    async def scenario(server: process._Server, listener: Listener) -> None:
        clients = [socket.create_connection(listener.real.getsockname()) for _ in range(20)]
        server._accept(listener)  # type: ignore[arg-type]
        assert len(server._opening) == process.ACCEPTED_AT_ONCE
        assert all(answer.startswith(b"HTTP/1.1 200") and b"hello" in answer for answer in await answers(clients))
        assert not server._opening

    with_server(0, scenario)


def test_a_process_without_files_waits_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "EXHAUSTED_SECONDS", 0.05)

    async def scenario(server: process._Server, listener: Listener) -> None:
        clients = [socket.create_connection(listener.real.getsockname()) for _ in range(3)]
        assert len(await answers(clients)) == 3
        assert listener.failures == 0

    with_server(2, scenario)
    assert caplog.messages.count("no connection is taken for 0.05 s: too many open files") == 2
