"""What is asked: lengths, prefixes and tenants of simulated requests, drawn from named workloads or read from a trace.

d1, d2, d3   decode-heavy, balanced and prefill-heavy of the Past-Future paper (arXiv 2507.10150, section 5.1)
heavy        heavy-tailed, like a reasoning model's: quantiles of the ShareGPT-o1 set of the paper's artifact
chat         shared system prompts: eight prefixes of 1 000 tokens before short questions, short answers
tenants      two tenants of equal weight with chat-like lengths, one asking ten times as often
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightllm.errors import ConfigError

Random = np.random.Generator
Length = Callable[[Random], int]
_VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class Job:
    """One request to come: its prompt, the output it will have, and the limit that it states (never the truth)."""

    prompt: NDArray[np.int32]
    output_len: int
    max_tokens: int
    tenant: str = ""
    arrival: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """How jobs are drawn. `prefixes` shared beginnings of `prefix_len` tokens; `tenants` with their shares."""

    name: str
    prompt_len: Length
    output_len: Length
    max_tokens: int
    prefixes: int = 0
    prefix_len: int = 0
    tenants: dict[str, float] = field(default_factory=lambda: {"": 1.0})

    def jobs(self, seed: int) -> Iterator[Job]:
        """Endless jobs, the same for the same seed."""
        random = np.random.default_rng([seed, 1])
        shared = random.integers(2, _VOCABULARY, (max(1, self.prefixes), self.prefix_len), np.int32)
        names = list(self.tenants)
        shares = np.array(list(self.tenants.values())) / sum(self.tenants.values())
        while True:
            own = random.integers(2, _VOCABULARY, self.prompt_len(random), np.int32)
            prefix = shared[int(random.integers(len(shared)))]
            output_len = min(self.output_len(random), self.max_tokens)
            tenant = names[int(random.choice(len(names), p=shares))]
            yield Job(np.concatenate([prefix, own]), output_len, self.max_tokens, tenant)


def uniform(low: int, high: int) -> Length:
    """Whole numbers from `low` to `high`, both included."""
    return lambda random: int(random.integers(low, high + 1))


def quantiles(*points: tuple[float, float]) -> Length:
    """Between the given (probability, length) points the quantile function is linear."""
    places = np.array([place for place, _ in points])
    lengths = np.array([length for _, length in points])
    return lambda random: max(1, round(float(np.interp(random.random(), places, lengths))))


_HEAVY_PROMPT = quantiles((0, 8), (0.5, 209), (0.9, 850), (0.99, 2594), (1, 10_798))
_HEAVY_OUTPUT = quantiles((0, 16), (0.1, 663), (0.5, 1954), (0.9, 3872), (0.99, 6451), (1, 10_935))
_QUESTION = quantiles((0, 8), (0.5, 60), (0.9, 300), (1, 1000))
_ANSWER = quantiles((0, 4), (0.5, 120), (0.9, 400), (1, 1000))

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("d1", uniform(32, 4096), uniform(2048, 4096), 5000),
        Workload("d2", uniform(3000, 5000), uniform(3000, 5000), 5000),
        Workload("d3", uniform(2048, 4096), uniform(32, 4096), 5000),
        Workload("heavy", _HEAVY_PROMPT, _HEAVY_OUTPUT, 11_000),
        Workload("chat", _QUESTION, _ANSWER, 2048, prefixes=8, prefix_len=1000),
        Workload("tenants", _QUESTION, _ANSWER, 2048, tenants={"busy": 10.0, "calm": 1.0}),
    )
}


def find_workload(name: str) -> Workload:
    """The workload of that name; ConfigError names the choices."""
    if name not in WORKLOADS:
        raise ConfigError(f"workload must be one of {', '.join(WORKLOADS)}, got {name!r}", param="workload")
    return WORKLOADS[name]
