"""Who is there, and in what state: the moves of a request between waiting, running and gone.

Everything that must happen together in a move happens here: the policy's queue, the row and slots, the estimator's
history and the counters. When to move whom is the scheduler's business.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import Submit
from lightllm.scheduler.estimators import Ended, Estimator
from lightllm.scheduler.lengths import Int64, Lengths
from lightllm.scheduler.policies import Policy
from lightllm.scheduler.request import NO_ROW, Request, State
from lightllm.scheduler.residence import Residence
from lightllm.scheduler.results import Counters

_MOST_TENANTS = 1000


class Roster:
    """All requests by id, the running ones by serial in the order they were admitted."""

    def __init__(
        self,
        memory: TokenMemory,
        lengths: Lengths,
        residence: Residence,
        policy: Policy,
        estimator: Estimator,
        counters: Counters,
    ) -> None:
        self._memory = memory
        self._lengths = lengths
        self._residence = residence
        self._policy = policy
        self._estimator = estimator
        self._tenants: dict[str, int] = {"": 0}
        self._num_submitted = 0
        self.requests: dict[int, Request] = {}
        self.running: dict[int, Request] = {}
        self.counters = counters
        self.preempted: deque[int] = deque(maxlen=1000)
        self.num_events = 0
        """Grows whenever somebody comes or stops running: a refusal holds while it stands still."""

    def submit(self, submit: Submit, now: float) -> Request:
        """A newcomer waits."""
        request = Request(submit, self._num_submitted, self._lengths, self._tenant(submit.tenant))
        request.shares_prefix &= self._residence.can_share(request.prompt_len)
        self._num_submitted += 1
        self.num_events += 1
        self.requests[request.request_id] = request
        self._estimator.on_submit(submit.max_tokens)
        self._policy.append(request, now)
        return request

    def open(self, request: Request, step: int, now: float) -> None:
        """A waiting request begins to run, with whatever prefix is cached."""
        self._policy.remove(request)
        request.move(State.PREFILL)
        request.opened_step = step
        self.running[request.serial] = request
        self._residence.open(request)
        self._policy.on_admit(request, now)
        self.counters.on_admit(request)
        if request.num_preemptions == 0:
            request.reused_len = request.matched_len
        if request.begun_at is None:
            request.begun_at = now
            self.counters.queue_seconds.append(now - request.arrival)

    def begin_output(self, request: Request, now: float) -> None:
        """A running request has its first token."""
        assert request.begun_at is not None
        self.counters.prefill_seconds.append(now - request.begun_at)

    def preempt(self, request: Request, now: float) -> None:
        """Back to the queue for want of memory."""
        self.requeue(request, now, trusted=True)
        request.num_preemptions += 1
        self.counters.on_preempt(request)
        self.preempted.append(request.request_id)
        self._estimator.on_evict()

    def requeue(self, request: Request, now: float, *, trusted: bool) -> None:
        """Back to the queue; what it computed, if trusted, stays in the prefix tree while there is room."""
        self._leave(request, trusted=trusted)
        request.move(State.QUEUED)
        self._policy.requeue(request, now)

    def close(self, request: Request, now: float, *, trusted: bool = True, by_itself: bool = False) -> None:
        """Take a request out of whatever state it is in and give back all it has."""
        generated = request.valued_len - request.prompt_len
        if by_itself or generated:
            limit = request.max_len - request.prompt_len
            self._estimator.on_finish(Ended(generated, limit, request.tenant, by_itself))
        if request.state is State.QUEUED:
            self._policy.remove(request)
        else:
            self._leave(request, trusted=trusted)
        request.move(State.FINISHED)
        self._policy.on_finish(request, now)
        if by_itself:
            self.counters.on_finish(request)
        request.close()
        del self.requests[request.request_id]

    def indices(self) -> Int64:
        """Indices of the running requests."""
        return np.flatnonzero(self._lengths.prefilling | self._lengths.decoding)

    def prompts(self) -> list[Request]:
        """Running requests whose prompt is in progress, oldest first."""
        lengths = self._lengths
        indices = np.flatnonzero(lengths.prefilling)
        prompts: list[Request] = lengths.owner[indices[np.argsort(lengths.serial[indices])]].tolist()
        return prompts

    def _leave(self, request: Request, *, trusted: bool) -> None:
        """Stop running. Prompts that counted on this one's prefix must not count on it any more."""
        self.num_events += 1
        if request.state is State.PREFILL:
            self._lengths.promised[self.indices()] = 0
        self._residence.release(request, trusted=trusted)
        del self.running[request.serial]

    def _tenant(self, name: str) -> int:
        """A number for a tenant; beyond a thousand names the rest count as the nameless one."""
        if name not in self._tenants and len(self._tenants) >= _MOST_TENANTS:
            return 0
        return self._tenants.setdefault(name, len(self._tenants))

    def check(self) -> None:
        """Assert the invariants of every request and of the memory, slot by slot (tests, and when idle)."""
        self._memory.check()
        for request in self.requests.values():
            request.check()
            assert (request.row == NO_ROW) == (request.state is State.QUEUED)
        self._residence.check(list(self.running.values()))
