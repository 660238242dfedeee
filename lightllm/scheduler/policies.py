"""The order in which waiting requests are admitted. A policy holds the waiting requests and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from lightllm.config.settings import SchedulerSettings
from lightllm.scheduler.request import Request


class Policy(Protocol):
    """An ordered set of waiting requests. `now` is in seconds."""

    def __len__(self) -> int: ...

    def append(self, request: Request, now: float) -> None:
        """A newcomer."""
        ...

    def requeue(self, request: Request, now: float) -> None:
        """A preempted request comes back; it must not starve."""
        ...

    def remove(self, request: Request) -> None:
        """Admitted or gone."""
        ...

    def candidates(self, now: float) -> Iterator[Request]:
        """Requests to try in order. The scheduler stops at the first that does not fit; a policy that allows
        overtaking yields accordingly few beyond it (see `overtaking`)."""
        ...

    @property
    def overtaking(self) -> int:
        """How many candidates may be tried after one that did not fit."""
        ...

    def on_token(self, request: Request, count: int, now: float) -> None:
        """A running request got `count` tokens."""
        ...

    def on_finish(self, request: Request, now: float) -> None: ...


class FirstComeFirstServed:
    """Strict order of arrival; the preempted go first."""

    overtaking = 0

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Request] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, request: Request, now: float) -> None:
        self._waiting[request.request_id] = request

    def requeue(self, request: Request, now: float) -> None:
        self._waiting[request.request_id] = request
        self._waiting.move_to_end(request.request_id, last=False)

    def remove(self, request: Request) -> None:
        del self._waiting[request.request_id]

    def candidates(self, now: float) -> Iterator[Request]:
        return iter(list(self._waiting.values()))

    def on_token(self, request: Request, count: int, now: float) -> None:
        pass

    def on_finish(self, request: Request, now: float) -> None:
        pass


def make_policy(settings: SchedulerSettings) -> Policy:
    """The policy that `settings.policy` names."""
    match settings.policy:
        case "fcfs":
            return FirstComeFirstServed()
