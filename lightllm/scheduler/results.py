"""From a step's numbers to messages: log-probability entries, and the counters that metrics and tests read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from lightllm.protocol.messages import TopLogprobs
from lightllm.protocol.plan import Logprobs
from lightllm.scheduler.request import Request

OTHER = "other"


class TenantCounters:
    """Prefix cache accounting and service of one tenant, in tokens; preemptions and refusals of its requests."""

    __slots__ = (
        "generated_tokens",
        "hit_tokens",
        "num_preemptions",
        "num_refused",
        "prompt_tokens",
        "queried_tokens",
    )

    def __init__(self) -> None:
        self.num_preemptions = 0
        self.num_refused = 0
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0


class Counters:
    """What the scheduler has done since it began; plain integers, read by metrics and tests.

    `tenants` is by name: those named in the settings, and `OTHER` for all the rest. Of the requests that began to run
    last, at most a thousand, `queue_seconds` says how long they had waited, `prefill_seconds` how long their first
    token then took; whoever reads them clears them.
    """

    __slots__ = (
        "hit_tokens",
        "num_finished",
        "num_preemptions",
        "num_refused",
        "num_steps",
        "prefill_seconds",
        "queried_tokens",
        "queue_seconds",
        "recomputed_tokens",
        "tenants",
    )

    def __init__(self, tenants: Iterable[str] = ()) -> None:
        self.num_steps = 0
        self.num_finished = 0
        self.num_preemptions = 0
        self.num_refused = 0
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.recomputed_tokens = 0
        self.queue_seconds: deque[float] = deque(maxlen=1000)
        self.prefill_seconds: deque[float] = deque(maxlen=1000)
        self.tenants = {name: TenantCounters() for name in (*tenants, OTHER)}

    def tenant(self, name: str) -> TenantCounters:
        return self.tenants.get(name) or self.tenants[OTHER]

    def on_admit(self, request: Request) -> None:
        """Count what the prefix cache gave a request that begins to run."""
        known, matched = request.known_len, request.matched_len
        self.queried_tokens += known
        self.hit_tokens += matched
        if request.num_preemptions:
            self.recomputed_tokens += known - matched
            return
        tenant = self.tenant(request.submit.tenant)
        tenant.prompt_tokens += request.prompt_len
        tenant.queried_tokens += known
        tenant.hit_tokens += matched

    def on_finish(self, request: Request) -> None:
        self.num_finished += 1
        self.tenant(request.submit.tenant).generated_tokens += request.valued_len - request.prompt_len

    def on_preempt(self, request: Request) -> None:
        self.num_preemptions += 1
        self.tenant(request.submit.tenant).num_preemptions += 1

    def on_refuse(self, request: Request) -> None:
        """A waiting request was given up."""
        self.num_refused += 1
        self.tenant(request.submit.tenant).num_refused += 1


def logprob_entries(logprobs: Logprobs | None) -> tuple[TopLogprobs, ...]:
    """Log-probabilities of P positions as P messages."""
    if logprobs is None:
        return ()
    return tuple(
        TopLogprobs(
            float(logprobs.chosen[i]),
            int(logprobs.ranks[i]),
            logprobs.top_ids[i].astype(np.int32).tobytes(),
            logprobs.top_values[i].astype(np.float32).tobytes(),
        )
        for i in range(len(logprobs.chosen))
    )


def prompt_entries(request: Request, start: int, logprobs: Logprobs | None) -> tuple[TopLogprobs | None, ...]:
    """Log-probabilities of prompt tokens not reported before, from a chunk that began at `start`.

    None stands for the first token, which nothing predicts.
    """
    if logprobs is None:
        return ()
    entries: list[TopLogprobs | None] = list(logprob_entries(logprobs))
    first = start + 1
    if start == 0:
        entries.insert(0, None)
        first = 0
    fresh = entries[max(0, request.scored_len - first) :]
    request.scored_len = max(request.scored_len, first + len(entries))
    return tuple(fresh)
