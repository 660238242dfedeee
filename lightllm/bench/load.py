"""A load client for servers with the OpenAI completions API: closed loop or open loop, every chunk timed.

Closed loop: `concurrency` requests are under way at any time. Open loop: requests start at Poisson times of a given
rate, however slow the answers. Times are those a client sees, on its own clock.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightllm.bench.http_stream import HttpFault, Target, request
from lightllm.bench.workloads import TokenRequest

ROUTE = "/v1/completions"


@dataclass(slots=True)
class Served:
    """One request as its client saw it: seconds from sending it to each chunk with text, and to the end."""

    chunk_times: list[float] = field(default_factory=list)
    end: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.chunk_times[0]

    @property
    def gaps(self) -> list[float]:
        """ITL: seconds between one chunk and the next."""
        return [after - before for before, after in zip(self.chunk_times, self.chunk_times[1:], strict=False)]

    @property
    def tpot(self) -> float | None:
        """(latency - TTFT) / (output tokens - 1); None for a single token."""
        return (self.end - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(frozen=True, slots=True)
class LoadClient:
    """Sends token-id prompts to one model of one server."""

    target: Target
    model: str
    api_key: str | None = None

    async def closed_loop(self, requests: Sequence[TokenRequest], concurrency: int) -> tuple[list[Served], float]:
        """Results in the order of the requests, and the seconds it all took."""
        gate = asyncio.Semaphore(concurrency)

        async def gated(item: TokenRequest) -> Served:
            async with gate:
                return await self.send(item)

        begun = time.perf_counter()
        served = await asyncio.gather(*map(gated, requests))
        return served, time.perf_counter() - begun

    async def open_loop(
        self, requests: Sequence[TokenRequest], rate: float, seed: int = 0
    ) -> tuple[list[Served], float]:
        """The same with `rate` requests per second, the gaps between them exponentially distributed."""
        gaps = np.random.default_rng(seed).exponential(1 / rate, len(requests))
        begun = time.perf_counter()
        tasks = []
        for item, due in zip(requests, np.cumsum(gaps) - gaps[0], strict=True):
            await asyncio.sleep(max(0.0, begun + float(due) - time.perf_counter()))
            tasks.append(asyncio.create_task(self.send(item)))
        served = await asyncio.gather(*tasks)
        return served, time.perf_counter() - begun

    async def send(self, item: TokenRequest) -> Served:
        """One request, streamed; a failure is noted, not raised."""
        served = Served()
        begun = time.perf_counter()
        try:
            async with request(self.target, "POST", ROUTE, self._body(item), self.api_key) as lines:
                async for line in lines:
                    if line.startswith(b"data:"):
                        _take(line[5:].strip(), served, time.perf_counter() - begun)
        except (HttpFault, OSError, ValueError) as error:
            served.error = str(error) or type(error).__name__
        served.end = time.perf_counter() - begun
        if served.error is None and not served.chunk_times:
            served.error = "the stream ended without text"
        return served

    def _body(self, item: TokenRequest) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": item.prompt.tolist(),
            "max_tokens": item.output_len,
            "temperature": item.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(body).encode()


async def first_model(target: Target, api_key: str | None) -> str:
    """The name of the first model a server lists. Raises HttpFault or OSError."""
    async with request(target, "GET", "/v1/models", b"", api_key) as lines:
        text = b"\n".join([line async for line in lines])
    try:
        return str(json.loads(text)["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise HttpFault("/v1/models names no model") from error


def _take(data: bytes, served: Served, now: float) -> None:
    """One event: a chunk of text, the usage, an error, or the end."""
    if data == b"[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        served.error = str(event["error"].get("message", event["error"]))
        return
    choices = event.get("choices") or []
    first = not served.chunk_times  # all that was made may be special tokens, which show no text
    if choices and (choices[0].get("text") or choices[0].get("finish_reason") is None or first):
        served.chunk_times.append(now)
    if usage := event.get("usage"):
        served.prompt_tokens = usage.get("prompt_tokens", 0)
        served.output_tokens = usage.get("completion_tokens", 0)
