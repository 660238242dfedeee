"""`lightllm bench serve`: loads a running server and reports what its clients see."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from lightllm.bench.http_stream import HttpFault, Target
from lightllm.bench.latency import Limits, LoadResult
from lightllm.bench.load import LoadClient, first_model
from lightllm.bench.report import command_line, software, write_json
from lightllm.bench.workloads import TokenRequest, WorkloadShape, make_requests, parse_range
from lightllm.cli.flags import parse
from lightllm.config.checks import check_at_least_one, check_not_negative, check_positive
from lightllm.errors import ConfigError, NotReady

LARGEST_VOCABULARY = 2**31
"""Token ids are int32."""


@dataclass(frozen=True, slots=True)
class LimitFlags:
    """What a request must meet to count as good; every request that succeeds when all are omitted."""

    ttft_limit: float | None = None
    """Most seconds to the first token."""
    tpot_limit: float | None = None
    """Most seconds per token after the first, on average."""
    gap_limit: float | None = None
    """Most seconds between any two chunks."""
    latency_limit: float | None = None
    """Most seconds to the last token."""


@dataclass(frozen=True, slots=True)
class BenchServeFlags:
    """Load a running server: random token-id prompts to /v1/completions, streamed, end of sequence ignored.

    Without --rate a fixed number of requests is kept under way; with it they arrive at random times.
    """

    url: str = "http://127.0.0.1:8000"
    """Where the server listens."""
    model: str | None = None
    """A model it serves; the first it lists when omitted."""
    api_key: str | None = None
    """Key for the server; the environment's OPENAI_API_KEY when omitted."""
    requests: int = 64
    """Requests to send."""
    concurrency: int = 8
    """Requests under way at a time, without --rate."""
    rate: float | None = None
    """Requests per second, at Poisson times."""
    warm_up: int = 2
    """Requests sent before, not counted."""
    input_len: str = "100-1024"
    """Prompt tokens, as 128 or 100-1024."""
    output_len: str = "100-1024"
    """Output tokens, as 128 or 100-1024."""
    temperature: float = 0.0
    """0 for greedy decoding."""
    vocab_size: int = 256
    """Prompts are made of token ids below this; every model served must have them."""
    seed: int = 0
    """The same seed gives the same prompts and arrival times."""
    limits: LimitFlags = field(default_factory=LimitFlags)
    json: str | None = None
    """File for all figures; - for standard output."""


def run(argv: Sequence[str]) -> int:
    """Load the server and print a table; 1 if every request failed."""
    flags = parse(BenchServeFlags, "bench serve", argv)
    _check(flags)
    target = Target.parse(flags.url)
    try:
        result = asyncio.run(_load(flags, target))
    except (OSError, HttpFault) as error:
        raise NotReady(f"no answer from {target.host}:{target.port}: {error or type(error).__name__}") from error
    if flags.json != "-":
        print(result.table())
    if flags.json is not None:
        workload = {name: value for name, value in asdict(flags).items() if name not in ("api_key", "json")}
        content = {"command": command_line(), "client": software(), "workload": workload, "result": result.to_dict()}
        write_json(flags.json, content)
    return 0 if result.completed else 1


def _check(flags: BenchServeFlags) -> None:
    check_at_least_one(flags, "requests", "concurrency", "vocab_size")
    check_not_negative(flags, "warm_up", "temperature", "seed")
    check_positive(flags, "rate")
    check_positive(flags.limits, "ttft_limit", "tpot_limit", "gap_limit", "latency_limit")
    if flags.vocab_size > LARGEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size must be at most {LARGEST_VOCABULARY}, got {flags.vocab_size}", param="vocab_size"
        )


async def _load(flags: BenchServeFlags, target: Target) -> LoadResult:
    key = flags.api_key or os.environ.get("OPENAI_API_KEY")
    client = LoadClient(target, flags.model or await first_model(target, key), key)
    if flags.warm_up:
        await client.closed_loop(_requests(flags, flags.warm_up, flags.seed + 1), flags.concurrency)
    requests = _requests(flags, flags.requests, flags.seed)
    if flags.rate is None:
        served, length = await client.closed_loop(requests, flags.concurrency)
    else:
        served, length = await client.open_loop(requests, flags.rate, flags.seed)
    given = flags.limits
    return LoadResult.of(
        served, length, Limits(given.ttft_limit, given.tpot_limit, given.gap_limit, given.latency_limit)
    )


def _requests(flags: BenchServeFlags, count: int, seed: int) -> list[TokenRequest]:
    input_len, output_len = parse_range(flags.input_len, "input_len"), parse_range(flags.output_len, "output_len")
    assert input_len is not None and output_len is not None
    return make_requests(
        WorkloadShape("serve", count, input_len, output_len, flags.temperature), flags.vocab_size, seed
    )
