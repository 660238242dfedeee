"""A small HTTP/1.1 client for server-sent events on asyncio streams: one request per connection, lines as they come.

It knows only what a load client needs: http, content length or chunks, no redirects, no compression, no TLS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lightllm.config.checks import split_url

LIMIT = 1 << 22
"""Longest line read."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens; `path` is put before every route."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Target:
        """http://host:port, with or without /v1. Raises ConfigError for anything else."""
        parts = split_url(url, "http")
        return cls(parts.hostname or "", parts.port or 80, parts.path.rstrip("/").removesuffix("/v1"))


class HttpFault(Exception):
    """The server answered with another status than 200, or not in HTTP."""


@asynccontextmanager
async def request(
    target: Target, method: str, route: str, body: bytes = b"", api_key: str | None = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Send a request and yield the lines of a 200 answer. Raises HttpFault, or OSError when nobody listens."""
    reader, writer = await asyncio.open_connection(target.host, target.port, limit=LIMIT)
    try:
        writer.write(_head(target, method, route, len(body), api_key) + body)
        await writer.drain()
        status, headers = await _read_head(reader)
        pieces = _body(reader, headers)
        if status != 200:
            text = b"".join([piece async for piece in pieces])
            raise HttpFault(f"status {status}: {text[:300].decode(errors='replace')}")
        yield _lines(pieces)
    except asyncio.IncompleteReadError as error:
        raise HttpFault("the connection was closed in the middle of an answer") from error
    finally:
        writer.close()


def _head(target: Target, method: str, route: str, length: int, api_key: str | None) -> bytes:
    lines = [
        f"{method} {target.path}{route} HTTP/1.1",
        f"Host: {target.host}:{target.port}",
        "Accept: */*",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *([f"Authorization: Bearer {api_key}"] if api_key else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status_line = (await _line(reader)).split(None, 2)
    if len(status_line) < 2 or not status_line[0].startswith(b"HTTP/") or not status_line[1].isdigit():
        raise HttpFault("the answer is not HTTP")
    headers: dict[str, str] = {}
    while line := (await _line(reader)).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(status_line[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body in the pieces it arrives in."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := _size(await _line(reader), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(_size(headers["content-length"].encode(), 10))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


async def _line(reader: asyncio.StreamReader) -> bytes:
    """One line with its end, which the connection must not come before."""
    try:
        line = await reader.readline()
    except ValueError as error:
        raise HttpFault(f"the answer has a line of more than {LIMIT} bytes") from error
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line


def _size(text: bytes, base: int) -> int:
    try:
        size = int(text.split(b";")[0], base)
    except ValueError:
        size = -1
    if size < 0:
        raise HttpFault(f"the answer is not HTTP: {text[:40]!r} is no size")
    return size


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines without their ends; the last one may lack an end."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest:
        yield rest
