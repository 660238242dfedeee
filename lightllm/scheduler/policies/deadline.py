"""Earliest deadline first, for the time to the first token.

A request's deadline is its arrival plus its `ttft_target` (or the server's; none means never). Those whose prompt
cannot be computed in time any more would only delay the others: they are refused if they asked for that
(`refuse_late`), and else served when nobody with a deadline to keep is waiting. Targets for the time between tokens
are kept by the composition of steps, not by the order of admission.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import islice

from lightllm.scheduler.policies.seam import MOST_CANDIDATES, FirstComeFirstServed, Outlook
from lightllm.scheduler.request import Request

_PESSIMISM = 1.5
"""Prompts share their steps with others: they take longer than alone."""
_MOST_LATE = 16
"""Deadlines looked at in one step."""


class EarliestDeadlineFirst(FirstComeFirstServed):
    """`ttft_target` is in seconds, for requests that name none."""

    def __init__(self, ttft_target: float | None) -> None:
        super().__init__()
        self._default = float("inf") if ttft_target is None else ttft_target
        self._order: list[tuple[float, int]] = []
        self._late: dict[int, Request] = {}
        self._refusable: dict[int, Request] = {}

    def deadline(self, request: Request) -> float:
        """When its first token is due, on the clock of `now`."""
        target = request.submit.ttft_target
        return request.arrival + (self._default if target is None else target)

    def append(self, request: Request, now: float) -> None:
        super().append(request, now)
        insort(self._order, (self.deadline(request), request.serial))

    def remove(self, request: Request) -> None:
        super().remove(request)
        self._refusable.pop(request.serial, None)
        if self._late.pop(request.serial, None) is None:
            entry = (self.deadline(request), request.serial)
            place = bisect_left(self._order, entry)
            if self._order[place : place + 1] == [entry]:
                del self._order[place]

    def hopeless(self, now: float, outlook: Outlook) -> Sequence[Request]:
        self._find_late(now, outlook)
        return list(self._refusable.values())

    def in_order(self, now: float, outlook: Outlook) -> Iterator[Request]:
        for _, serial in self._order[:MOST_CANDIDATES]:
            yield self._arrived[serial]
        yield from list(islice(self._late.values(), MOST_CANDIDATES))

    def _find_late(self, now: float, outlook: Outlook) -> None:
        """Move requests that cannot make it from the head of the order to the late ones."""
        for entry in self._order[:_MOST_LATE]:
            deadline, serial = entry
            request = self._arrived[serial]
            if now + _PESSIMISM * outlook.prefill_seconds(request) > deadline:
                self._order.remove(entry)
                self._late[serial] = request
                if request.submit.refuse_late:
                    self._refusable[serial] = request
