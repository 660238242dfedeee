"""The workloads that speed is quoted on: token-id prompts, uniformly random, no shared prefix, no end of sequence.

    single       1 x (128 in, 256 out)
    batch32     32 x (512 in, 256 out)
    prefill     32 x (2048 in, 1 out)             counted in input tokens per second
    ragged     256 x (100-1024 in, 100-1024 out)  temperature 0.6
    throughput 512 x (1024 in, 256 out)

Everything is greedy unless said. Sizes can be scaled down for small machines. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightllm.errors import ConfigError

Int32 = NDArray[np.int32]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A prompt of token ids, how many tokens to make from it, and whether every prompt position is scored."""

    prompt: Int32
    output_len: int
    temperature: float = 0.0
    scored: bool = False


@dataclass(frozen=True, slots=True)
class WorkloadShape:
    """Sizes of a workload; lengths are drawn uniformly from the ranges, ends included."""

    name: str
    num_requests: int
    input_len: Range
    output_len: Range
    temperature: float = 0.0
    counted: Literal["input", "output"] = "output"

    def __str__(self) -> str:
        return f"{self.num_requests} x ({_span(self.input_len)} in, {_span(self.output_len)} out)"

    @property
    def longest(self) -> int:
        """Most tokens that one request can have."""
        return self.input_len[1] + self.output_len[1]

    def scaled(self, num_requests: int | None, input_len: Range | None, output_len: Range | None) -> WorkloadShape:
        """The same workload with other sizes where they are given."""
        return replace(
            self,
            num_requests=num_requests or self.num_requests,
            input_len=input_len or self.input_len,
            output_len=output_len or self.output_len,
        )


SHAPES = {
    shape.name: shape
    for shape in (
        WorkloadShape("single", 1, (128, 128), (256, 256)),
        WorkloadShape("batch32", 32, (512, 512), (256, 256)),
        WorkloadShape("prefill", 32, (2048, 2048), (1, 1), counted="input"),
        WorkloadShape("ragged", 256, (100, 1024), (100, 1024), temperature=0.6),
        WorkloadShape("throughput", 512, (1024, 1024), (256, 256)),
    )
}


def make_requests(shape: WorkloadShape, vocab_size: int, seed: int = 0) -> list[TokenRequest]:
    """The requests of a workload; equal seeds give equal requests. No two workloads share a prefix: the engine would
    find it in its prefix cache."""
    rng = np.random.default_rng([seed, *shape.name.encode()])
    input_lens = rng.integers(*_half_open(shape.input_len), size=shape.num_requests)
    output_lens = rng.integers(*_half_open(shape.output_len), size=shape.num_requests)
    return [
        TokenRequest(rng.integers(0, vocab_size, int(length), dtype=np.int32), int(wanted), shape.temperature)
        for length, wanted in zip(input_lens, output_lens, strict=True)
    ]


def parse_range(text: str | None, name: str) -> Range | None:
    """ "128" or "100-1024". Raises ConfigError for anything else."""
    if text is None:
        return None
    parts = text.split("-")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{name} must be a length like 128 or a range like 100-1024, got {text!r}", param=name)
    low, high = int(parts[0]), int(parts[-1])
    if not 1 <= low <= high:
        raise ConfigError(f"{name} must be at least 1 and not fall, got {text!r}", param=name)
    return low, high


def total_tokens(requests: Sequence[TokenRequest], counted: str) -> int:
    """Input or output tokens of all requests."""
    if counted == "input":
        return sum(len(request.prompt) for request in requests)
    return sum(request.output_len for request in requests)


def _half_open(span: Range) -> Range:
    return span[0], span[1] + 1


def _span(span: Range) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
