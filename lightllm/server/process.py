"""The life of a frontend process: serve HTTP on an inherited socket while messages arrive, drain, leave.

Starting and watching processes is the supervisor's business; this module only obeys Drain and Die.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from lightllm.config.settings import ServerSettings
from lightllm.errors import Draining
from lightllm.ipc import Receiver
from lightllm.protocol.messages import Die, Drain, FrontendInbox
from lightllm.server.connection import Connection
from lightllm.workers.frontend import Frontend

IDLE_CONNECTION_SECONDS = 75
"""How long a connection without a request is kept; longer than load balancers and clients keep theirs."""
LAST_WORDS_SECONDS = 2
"""After the last generation ended, how long its response may take to leave."""
ACCEPTED_AT_ONCE = 4
"""Connections taken in one turn of the event loop."""
EXHAUSTED_SECONDS = 1.0
"""How long none is taken when the process can have no more open files."""

logger = logging.getLogger(__name__)


def run_frontend(
    frontend: Frontend, app: ASGIApp, listening_socket: socket.socket, inbox: Receiver[FrontendInbox]
) -> None:
    """Serve until Drain or Die arrives; blocks. The socket must be bound and is closed at the end.

    Signals are left to the caller: a frontend is stopped by messages, or killed.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(frontend, app, listening_socket, inbox))


async def serve(
    frontend: Frontend, app: ASGIApp, listening_socket: socket.socket, inbox: Receiver[FrontendInbox]
) -> None:
    """`run_frontend` on the running event loop."""
    if listening_socket.family in (socket.AF_INET, socket.AF_INET6):
        # connections inherit it; otherwise each event of a stream may wait 40 ms for the client to acknowledge the last
        listening_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = _Server(_config(app, frontend.settings.server))
    receiving = asyncio.create_task(_receive(frontend, inbox, server))
    receiving.add_done_callback(lambda _: _end(frontend, server))
    try:
        await server.serve(sockets=[listening_socket])
    finally:
        receiving.cancel()
        await asyncio.wait([receiving])
        frontend.close()
    if not receiving.cancelled():
        receiving.result()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, which takes a few connections at a time: frontends share one socket, and of a
    burst of connections, which clients may keep, each is to have its part."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def leave(self) -> None:
        """Stop accepting, let responses under way finish for a moment, then return from `serve`."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []
        self._opening: set[asyncio.Task[Any]] = set()
        for listener in sockets or []:
            self._accept_from(listener)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
        await super().shutdown(sockets)

    def _accept_from(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # a pause may end after the listener did
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more files, or no memory
                logger.error("no connection is taken for %g s: %s", EXHAUSTED_SECONDS, error.strerror)
                loop.remove_reader(listener)
                loop.call_later(EXHAUSTED_SECONDS, self._accept_from, listener)
                return
            connection.setblocking(False)
            opening = loop.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        protocol: Any = self.config.http_protocol_class
        make = partial(protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        with contextlib.suppress(OSError):  # the client has left
            await asyncio.get_running_loop().connect_accepted_socket(make, connection)


def _config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(Connection, upload_seconds=settings.upload_seconds),  # type: ignore[arg-type]  # as good as a class
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning" if not settings.access_log else "info",
        access_log=settings.access_log,
        server_header=False,
        root_path=settings.root_path,
        timeout_keep_alive=IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=LAST_WORDS_SECONDS,
    )


async def _receive(frontend: Frontend, inbox: Receiver[FrontendInbox], server: _Server) -> None:
    """The receive loop. It ends with Die, or when a drain is complete."""
    draining: asyncio.Task[None] | None = None
    async for batch in inbox.stream():
        for message in batch:
            frontend.receive(message)
            match message:
                case Die():
                    return
                case Drain() if draining is None:
                    draining = asyncio.create_task(_drain(frontend, message.deadline_s))
                    draining.add_done_callback(lambda _: server.leave())


def _end(frontend: Frontend, server: _Server) -> None:
    """Nothing will be heard any more, so nobody may wait for it."""
    frontend.fail_all(Draining("the server stopped"))
    server.leave()


async def _drain(frontend: Frontend, deadline_s: float) -> None:
    """Let live generations finish; those that are not done by the deadline end with an error."""
    logger.info("draining: %d requests may finish within %g s", frontend.num_live, deadline_s)
    if not await frontend.wait_idle(deadline_s):
        frontend.fail_all(Draining(f"the server stopped before the answer was complete, after {deadline_s:g} s"))
