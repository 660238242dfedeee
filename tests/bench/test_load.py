"""The load client against a small server of our own that speaks chunked HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from lightllm.bench.http_stream import LIMIT, HttpFault, Target
from lightllm.bench.load import LoadClient, Served, first_model
from lightllm.bench.workloads import TokenRequest
from lightllm.errors import ConfigError

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunked(*events: Any) -> bytes:
    """A 200 answer with server-sent events, each cut into two HTTP chunks."""
    out = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for event in events:
        data = b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
        for piece in (data[:9], data[9:]):
            out += b"%x\r\n%s\r\n" % (len(piece), piece)
    return out + b"0\r\n\r\n"


def text(word: str) -> dict[str, Any]:
    return {"choices": [{"text": word, "finish_reason": None}]}


STREAM = chunked(
    text("a"), text("b"), {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, b"[DONE]"
)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-le"))
    return head + await reader.readexactly(length)


async def serve(answer: bytes, use: Callable[[Target], Awaitable[Any]], seen: list[bytes] | None = None) -> Any:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        if seen is not None:
            seen.append(request)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        return await use(Target(host, port))


def one(count: int = 1) -> list[TokenRequest]:
    return [TokenRequest(np.array([1, 2, 3], np.int32), 2)] * count


def test_chunks_are_timed_and_usage_counted() -> None:
    seen: list[bytes] = []

    async def use(target: Target) -> tuple[list[Served], float]:
        return await LoadClient(target, "m", "key").closed_loop(one(3), concurrency=2)

    served, _ = asyncio.run(serve(STREAM, use, seen))
    assert [(len(s.chunk_times), s.output_tokens, s.error) for s in served] == [(2, 2, None)] * 3
    head, body = seen[0].split(b"\r\n\r\n")
    assert b"Authorization: Bearer key" in head and b"POST /v1/completions" in head
    assert json.loads(body)["prompt"] == [1, 2, 3]


def test_open_loop_sends_all() -> None:
    async def use(target: Target) -> tuple[list[Served], float]:
        return await LoadClient(target, "m").open_loop(one(5), rate=500.0)

    served, _ = asyncio.run(serve(STREAM, use))
    assert [s.error for s in served] == [None] * 5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy", "status 503: busy"),
        (b"nonsense\r\n\r\n", "not HTTP"),
        (chunked({"error": {"message": "it broke"}}), "it broke"),
        (chunked(b"[DONE]"), "without text"),
        (chunked(text("a"))[:-9], "closed in the middle"),
        (chunked(text("a"))[:-5], "closed in the middle"),  # between two chunks
        (chunked(text("a"))[:-5] + b"many\r\n", "is no size"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nbusy", "'-4' is no size"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (LIMIT + 1), "line of more than"),
    ],
)
def test_failures_are_noted(answer: bytes, words: str) -> None:
    async def use(target: Target) -> Served:
        return await LoadClient(target, "m").send(one()[0])

    served = asyncio.run(serve(answer, use))
    assert served.error is not None and words in served.error


def test_tokens_without_text_are_no_failure() -> None:
    """Special tokens show none: the last chunk, which says why it ended, is then the only one."""
    last = {"choices": [{"text": "", "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}

    async def use(target: Target) -> Served:
        return await LoadClient(target, "m").send(one()[0])

    for events, times in ([last], 1), ([text("a"), last], 1), ([text("a"), text("b"), last], 2):
        served = asyncio.run(serve(chunked(*events, usage, b"[DONE]"), use))
        assert served.error is None and (len(served.chunk_times), served.output_tokens) == (times, 2)


def test_the_first_model_is_asked_for() -> None:
    answer = b'HTTP/1.1 200 OK\r\n\r\n{"data": [{"id": "tiny"}]}'
    assert asyncio.run(serve(answer, lambda target: first_model(target, None))) == "tiny"
    with pytest.raises(HttpFault):
        asyncio.run(serve(b"HTTP/1.1 200 OK\r\n\r\n[]", lambda target: first_model(target, None)))


@pytest.mark.parametrize("url", ["https://x", "http://", "http://x:0", "http://x:port", "http://[::1"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        Target.parse(url)


def test_urls_may_name_the_version() -> None:
    assert Target.parse("localhost:8000/v1") == Target("localhost", 8000)
    assert Target.parse("http://h/prefix/v1/") == Target("h", 80, "/prefix")
