"""Whether a waiting request fits: the future peak of memory with it admitted must stay within the pool.

What a request holds is what it would free: its private slots and the part of its cached prefix that nobody else
uses. Prefixes in use by several count once, as a constant. A prefix that another prompt in progress is computing
right now is promised to the newcomer and not counted again.
"""

from __future__ import annotations

import numpy as np

from lightllm.memory.token_memory import TokenMemory
from lightllm.scheduler.estimators import Estimator, Forecast
from lightllm.scheduler.lengths import Int64, Lengths
from lightllm.scheduler.load import Load
from lightllm.scheduler.request import Request, State, Tokens

_MOST_DONORS = 8


class Admission:
    """Asks the estimator, unless there is room whatever becomes of the requests. `extra_tokens` are slots that every
    running request may take beyond its own tokens in a step (speculative ones); `chunk` is the longest piece of a
    prompt in a step."""

    def __init__(
        self, memory: TokenMemory, lengths: Lengths, estimator: Estimator, *, chunk: int, extra_tokens: int = 0
    ) -> None:
        self._memory = memory
        self._lengths = lengths
        self._estimator = estimator
        self._chunk = chunk
        self._extra_tokens = extra_tokens
        self._running: Int64 = np.empty(0, np.int64)
        self._load: Load | None = None
        self._forecast: Forecast | None = None

    def begin(self, running: Int64) -> None:
        """A pass begins; `running` are the indices of the running requests."""
        self._running = running
        self._load = self._forecast = None

    def fits(self, request: Request, matchable: Tokens, prompts: list[Request]) -> bool:
        """Whether `request` may join; `prompts` are the running ones whose prompt is in progress."""
        peek = self._memory.peek(matchable, request.submit.cache_salt)
        request.promised_len = _promised(request, matchable, prompts, peek.matched_len)
        known = request.known_len
        covered = max(peek.matched_len, request.promised_len)
        newcomer = Load.of_one(
            held=known - covered + peek.unreferenced_len + self._extra_tokens,
            generated=request.num_generated,
            allowed=request.max_len - known,
            delay=(known - covered) // self._chunk,
            tenant=request.tenant,
        )
        shared = self._memory.num_locked - self._memory.num_exclusive
        room = self._estimator.capacity(self._memory.total) - shared
        if self._forecast is None:
            load = self._running_load() if self._load is None else self._load
            if load.most + newcomer.most <= room:
                self._load = load.plus(newcomer)
                return True
            self._forecast = self._estimator.forecast(load)
        if self._forecast.peak_with(newcomer) > room:
            self._estimator.on_refuse()
            return False
        self._forecast.accept()
        return True

    def _running_load(self) -> Load:
        lengths, index = self._lengths, self._running
        known = lengths.known[index]
        covered = np.maximum(lengths.matched[index], lengths.promised[index])
        return Load(
            held=known - covered + self._memory.exclusive(index) + self._extra_tokens,
            generated=known - lengths.prompt[index],
            allowed=lengths.limit[index] - known,
            delay=np.maximum(known - lengths.computed[index] - 1, 0) // self._chunk,
            tenant=lengths.tenant[index],
        )


def _promised(request: Request, matchable: Tokens, prompts: list[Request], matched_len: int) -> int:
    """The longest prefix of `matchable` that a prompt in progress will have computed; 0 if the tree knows as much."""
    longest = 0
    for donor in prompts[:_MOST_DONORS]:
        if (
            donor.state is not State.PREFILL
            or not donor.shares_prefix
            or donor.submit.cache_salt != request.submit.cache_salt
        ):
            continue
        length = min(len(matchable), donor.known_len)
        theirs = donor.buffer[:length]
        different = theirs != matchable[:length]
        common = int(different.argmax()) if different.any() else length
        longest = max(longest, common)
    return longest if longest > matched_len else 0
