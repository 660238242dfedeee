"""Orders by a key: priority, shortest predicted first, longest cached prefix first.

All of them age: a request that has waited `ageing` seconds goes before those the key prefers, in order of arrival.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice

from lightllm.scheduler.policies.seam import MOST_CANDIDATES, FirstComeFirstServed, Outlook
from lightllm.scheduler.request import Request

Entry = tuple[float, int]


class Keyed(FirstComeFirstServed):
    """Smallest key first; a key is computed once, when the request is first looked at."""

    def __init__(self, ageing: float) -> None:
        super().__init__()
        self._ageing = ageing
        self._since: dict[int, float] = {}
        self._fresh: list[Request] = []
        self._keys: dict[int, float] = {}
        self._order: list[Entry] = []

    @abstractmethod
    def key(self, request: Request, outlook: Outlook) -> float:
        """What is smallest goes first."""

    def append(self, request: Request, now: float) -> None:
        super().append(request, now)
        self._since[request.serial] = now
        self._fresh.append(request)

    def remove(self, request: Request) -> None:
        super().remove(request)
        self._since.pop(request.serial, None)
        key = self._keys.pop(request.serial, None)
        if key is not None:
            del self._order[bisect_left(self._order, (key, request.serial))]

    def in_order(self, now: float, outlook: Outlook) -> Iterator[Request]:
        self._take_fresh(outlook)
        aged = [r for r in islice(self._arrived.values(), MOST_CANDIDATES) if self._has_aged(r, now)]
        yield from aged
        for _, serial in self._order[:MOST_CANDIDATES]:
            request = self._arrived.get(serial)
            if request is not None and not self._has_aged(request, now):
                yield request

    def _take_fresh(self, outlook: Outlook) -> None:
        for request in self._fresh:
            if request.serial in self._arrived:
                key = self._keys[request.serial] = self.key(request, outlook)
                insort(self._order, (key, request.serial))
        self._fresh.clear()

    def _has_aged(self, request: Request, now: float) -> bool:
        return now - self._since[request.serial] >= self._ageing


class Priority(Keyed):
    """Highest `Submit.priority` first."""

    def key(self, request: Request, outlook: Outlook) -> float:
        return -float(request.submit.priority)


class ShortestFirst(Keyed):
    """Fewest predicted tokens of work first, prompt and expected output together."""

    def key(self, request: Request, outlook: Outlook) -> float:
        return request.prompt_len + outlook.expected_output(request)


class LongestPrefixFirst(FirstComeFirstServed):
    """Longest cached prefix first among the oldest 64 (RadixAttention, arXiv 2312.07104, section 3.2), with ageing."""

    def __init__(self, ageing: float) -> None:
        super().__init__()
        self._ageing = ageing
        self._since: dict[int, float] = {}

    def append(self, request: Request, now: float) -> None:
        super().append(request, now)
        self._since[request.serial] = now

    def remove(self, request: Request) -> None:
        super().remove(request)
        self._since.pop(request.serial, None)

    def in_order(self, now: float, outlook: Outlook) -> Iterator[Request]:
        oldest = list(islice(self._arrived.values(), MOST_CANDIDATES))
        aged = [r for r in oldest if now - self._since[r.serial] >= self._ageing]
        young = oldest[len(aged) :]
        young.sort(key=lambda r: (-outlook.cached_len(r), r.serial))
        yield from aged
        yield from young
