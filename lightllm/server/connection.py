"""One HTTP connection: uvicorn's, with limits on what comes before a handler runs.

    connected ──first byte──▶ head of a request ──▶ body, while a handler reads it ──▶ answered ──▶ connected
        │ silent for long          │ slow: 408              `lightllm.server.body`       │ the rest is slow
        ▼ closed                   ▼ large: 431, no HTTP: 400                            ▼ closed

Refusals have the shape of all errors. How long and how large a body may be is not known here.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lightllm.errors import HeadersTooLarge, InvalidRequest, LightLLMError, RequestTimeout
from lightllm.server.faults import error_body

MAX_HEAD_BYTES = 1 << 16
"""Of a request line and headers, beyond what came with their first bytes."""


class Connection(HttpToolsProtocol):
    """A connection whose client has `upload_seconds` to send the head of a request, and as long for what follows an
    answer that did not wait for it."""

    def __init__(self, *args: Any, upload_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._upload_seconds = upload_seconds
        self._clock: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._start_clock()
        continues_head = self._in_head
        try:
            self._parse(data)
        except HttpParserError:
            self._refuse(InvalidRequest("the request is not valid HTTP"))
            return
        if continues_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadersTooLarge(f"the headers have more than the {MAX_HEAD_BYTES} bytes that are allowed"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._start_clock()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self._stop_clock()

    def _parse(self, data: bytes) -> None:
        """Raises HttpParserError. A request to change the protocol (Java's client asks every server for HTTP/2) is
        read again without that wish: the parser takes all that follows it for the other protocol, the body too."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The request whose head was read last, as it would be without that wish, and what follows it."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise HttpParserError("this is no proxy")
        self.parser = _new_parser(self)
        head = [b"%b %b HTTP/1.1" % (method, self.url)]
        head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*head, b"", rest])

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self._upload_seconds, self._expire)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _expire(self) -> None:
        self._clock = None
        if self._is_answering:
            self._start_clock()
        elif self._in_head:
            self._refuse(RequestTimeout(f"the request's headers did not arrive within {self._upload_seconds:g} s"))
        else:
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: LightLLMError) -> None:
        """End the connection, with the error unless an answer was already begun."""
        if self.transport.is_closing():
            return
        begun = False
        if self._is_answering:
            begun = self.cycle.response_started
            self.cycle.disconnected = True  # its handler stops and sends no more
            self.cycle.message_event.set()
        if not begun:
            self.transport.write(_response(error))
        self.transport.close()


def _new_parser(connection: Connection) -> HttpRequestParser:
    parser = HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does, for requests in a row
    return parser


def _response(error: LightLLMError) -> bytes:
    body = error_body(error)
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
