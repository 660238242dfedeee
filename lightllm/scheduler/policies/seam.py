"""The seam between the scheduler and the order in which waiting requests are admitted.

A policy holds the waiting requests and nothing else. The scheduler asks for candidates, in order, and admits those
that fit. It may admit a later candidate past one that does not fit, but only `SchedulerSettings.overtaking` requests
may pass any one request: then nobody is admitted before it, running requests end, and its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from lightllm.scheduler.request import Request

MOST_CANDIDATES = 64
"""How many requests a policy needs to put in order for one pass."""


class Outlook(Protocol):
    """What a policy may ask about a waiting request."""

    def cached_len(self, request: Request) -> int:
        """Leading tokens whose KV is in the prefix tree now."""
        ...

    def expected_output(self, request: Request) -> float:
        """Tokens it is still expected to generate."""
        ...

    def prefill_seconds(self, request: Request) -> float:
        """Time to compute its prompt if it began now; 0 while unknown."""
        ...


class Policy(Protocol):
    """An ordered set of waiting requests. `now` is in seconds."""

    strict: bool
    """Whether the order must hold even while a request waits for memory: nobody is admitted past it."""

    def __len__(self) -> int: ...

    def append(self, request: Request, now: float) -> None:
        """A newcomer."""
        ...

    def requeue(self, request: Request, now: float) -> None:
        """A preempted request comes back; it must not starve."""
        ...

    def remove(self, request: Request) -> None:
        """No longer waiting: admitted, ended or refused."""
        ...

    def candidates(self, now: float, outlook: Outlook) -> Iterator[Request]:
        """Requests to try, in order. One that is admitted has been removed before the next is asked for."""
        ...

    def hopeless(self, now: float, outlook: Outlook) -> Sequence[Request]:
        """Requests to refuse now: they asked for it and cannot meet their target any more."""
        ...

    def on_admit(self, request: Request, now: float) -> None:
        """A request began to run (again, if it was preempted)."""
        ...

    def on_tokens(self, requests: Sequence[Request], now: float) -> None:
        """Each of these running requests got one token."""
        ...

    def on_finish(self, request: Request, now: float) -> None:
        """A request is over, whether it ran or waited."""
        ...


class FirstComeFirstServed:
    """Order of arrival; the preempted go first, oldest first. Also the base of the policies in this package."""

    strict = False

    def __init__(self) -> None:
        self._arrived: dict[int, Request] = {}
        self._returned: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._arrived) + len(self._returned)

    def append(self, request: Request, now: float) -> None:
        self._arrived[request.serial] = request

    def requeue(self, request: Request, now: float) -> None:
        self._returned[request.serial] = request
        self._returned = dict(sorted(self._returned.items()))

    def remove(self, request: Request) -> None:
        if self._arrived.pop(request.serial, None) is None:
            del self._returned[request.serial]

    def candidates(self, now: float, outlook: Outlook) -> Iterator[Request]:
        yield from list(self._returned.values())
        yield from self.in_order(now, outlook)

    def in_order(self, now: float, outlook: Outlook) -> Iterator[Request]:
        """The newcomers, in this policy's order."""
        return iter(list(islice(self._arrived.values(), MOST_CANDIDATES)))

    def hopeless(self, now: float, outlook: Outlook) -> Sequence[Request]:
        return ()

    def on_admit(self, request: Request, now: float) -> None:
        pass

    def on_tokens(self, requests: Sequence[Request], now: float) -> None:
        pass

    def on_finish(self, request: Request, now: float) -> None:
        pass
