"""Server-sent events: one answer written as it is generated, over a connection that may vanish at any moment.

data: {...}\\n\\n        an event
: keep-alive\\n\\n       a comment that clients skip, when nothing was sent for a while
data: {"error": ...}   a failure after the first byte, when the status can no longer say it
data: [DONE]\\n\\n       the end, in the OpenAI dialect
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lightllm.errors import LightLLMError
from lightllm.server.faults import as_error, error_body
from lightllm.workers.generation import Generation

KEEP_ALIVE_SECONDS = 15.0
REFUSAL_SECONDS = 0.25
"""How long the status waits for the first token, so that what the engine refuses at once is no success."""
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client left before the answer; nobody reads it but the log."""

_SEPARATORS = tuple((character.encode(), f"\\u{ord(character):04x}".encode()) for character in "\u0085\u2028\u2029")
"""Of lines and paragraphs, as Unicode has them."""
_encoder = msgspec.json.Encoder()
logger = logging.getLogger(__name__)


def event(value: Any) -> bytes:
    """One event with `value` as JSON."""
    return _event(_encoder.encode(value))


def _event(body: bytes) -> bytes:
    """One event with JSON, in which what many a client takes for the end of a line is escaped."""
    for separator, escaped in _SEPARATORS:
        body = body.replace(separator, escaped)
    return b"data: " + body + b"\n\n"


def json_response(value: Any) -> Response:
    return Response(_encoder.encode(value), media_type="application/json")


def client_gone() -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


class EventStream:
    """A response that writes `events` (whole events, encoded) and ends `generation` when the client leaves.

    Raises the LightLLMError of a generation that fails before its first token, at once.

    done: what is written after the last event, also after an error.
    keep_alive: seconds of silence after which a comment is sent.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        generation: Generation,
        *,
        done: bytes = DONE,
        keep_alive: float | None = None,
    ) -> None:
        self._events = events
        self._generation = generation
        self._done = done
        self._keep_alive = KEEP_ALIVE_SECONDS if keep_alive is None else keep_alive
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._generation as generation:
            async with watch(receive, generation):
                await generation.begin(REFUSAL_SECONDS)
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                async with self._beating(send):
                    async for data in self._guarded():
                        await self._write(send, data)
            if not generation.closed:
                await self._write(send, self._done)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _guarded(self) -> AsyncIterator[bytes]:
        """The events; an error becomes the last of them."""
        try:
            async for data in self._events:
                yield data
        except LightLLMError as error:
            yield _event(error_body(error))
        except Exception as error:
            logger.exception("a stream failed")
            yield _event(error_body(as_error(error)))

    async def _write(self, send: Send, data: bytes) -> None:
        self._sent_at = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    @asynccontextmanager
    async def _beating(self, send: Send) -> AsyncIterator[None]:
        async def beat() -> None:
            while True:
                wait = self._sent_at + self._keep_alive - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                else:
                    await self._write(send, b": keep-alive\n\n")

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            await _end(task)


@asynccontextmanager
async def watch(receive: Receive, generation: Generation) -> AsyncIterator[None]:
    """Within the block, a client that leaves ends `generation` at once, even while nothing is being sent."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.close(disconnected=True)

    task = asyncio.create_task(listen())
    try:
        yield
    finally:
        await _end(task)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a helper and wait for it; what the connection raised in it no longer matters."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
