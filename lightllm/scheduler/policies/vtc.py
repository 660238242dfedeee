"""Fair shares between tenants: the virtual token counter (VTC; Sheng et al., OSDI 2024, arXiv 2401.00588, Alg. 2).

Each tenant has a counter of the service it got, divided by its weight: w_in for a prompt token when the request is
first admitted, w_out for each generated token. The tenant with the smallest counter goes next. A tenant that comes
back from idleness is lifted to the smallest counter among the waiting, so it cannot live on saved-up credit.

Two tenants that wait all the time differ in service by at most 2 max(w_in * longest prompt, w_out * pool size).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType

from lightllm.scheduler.policies.seam import MOST_CANDIDATES, Outlook
from lightllm.scheduler.request import Request

_MOST_IDLE_TENANTS = 10_000


class VirtualTokenCounter:
    """Waiting requests by tenant. Work-conserving: whoever waits is served when there is room.

    `tenant_weights` are by name; a tenant without one has weight 1.
    """

    strict = True

    def __init__(
        self,
        input_weight: float = 1.0,
        output_weight: float = 2.0,
        tenant_weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._input_weight = input_weight
        self._output_weight = output_weight
        self.counters: dict[str, float] = {}
        self._weights = tenant_weights
        self._queues: dict[str, dict[int, Request]] = {}
        self._last_to_leave = ""
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def append(self, request: Request, now: float) -> None:
        tenant = request.submit.tenant
        if tenant not in self._queues:
            self._lift(tenant)
        self._queues.setdefault(tenant, {})[request.serial] = request
        self._num_waiting += 1

    def requeue(self, request: Request, now: float) -> None:
        """Back to the head of its tenant's queue; its prompt is not charged again."""
        self.append(request, now)
        queue = self._queues[request.submit.tenant]
        self._queues[request.submit.tenant] = dict(sorted(queue.items()))

    def remove(self, request: Request) -> None:
        tenant = request.submit.tenant
        queue = self._queues[tenant]
        del queue[request.serial]
        self._num_waiting -= 1
        if not queue:
            del self._queues[tenant]
            self._last_to_leave = tenant

    def candidates(self, now: float, outlook: Outlook) -> Iterator[Request]:
        """The oldest request of the least served tenant, again and again; a tenant that was refused is done."""
        refused: set[str] = set()
        while len(refused) < MOST_CANDIDATES:
            waiting = [tenant for tenant in self._queues if tenant not in refused]
            if not waiting:
                return
            tenant = min(waiting, key=lambda name: self.counters[name])
            request = next(iter(self._queues[tenant].values()))
            yield request
            if request.serial in self._queues.get(tenant, ()):
                refused.add(tenant)

    def hopeless(self, now: float, outlook: Outlook) -> Sequence[Request]:
        return ()

    def on_admit(self, request: Request, now: float) -> None:
        if request.num_preemptions == 0:
            self._charge(request.submit.tenant, self._input_weight * request.prompt_len)

    def on_tokens(self, requests: Sequence[Request], now: float) -> None:
        for tenant, count in Counter(request.submit.tenant for request in requests).items():
            self._charge(tenant, self._output_weight * count)

    def on_finish(self, request: Request, now: float) -> None:
        pass

    def _charge(self, tenant: str, service: float) -> None:
        self.counters[tenant] = self.counters.get(tenant, 0.0) + service / self._weights.get(tenant, 1.0)

    def _lift(self, tenant: str) -> None:
        """A tenant without waiting requests gets one: no credit for the time it did not ask (Alg. 2, lines 7-13)."""
        if self._queues:
            floor = min(self.counters[name] for name in self._queues)
        else:
            floor = self.counters.get(self._last_to_leave, 0.0)
        if len(self.counters) > _MOST_IDLE_TENANTS + len(self._queues):
            self._forget_idle()
        self.counters[tenant] = max(self.counters.get(tenant, 0.0), floor)

    def _forget_idle(self) -> None:
        """Forget half of the idle tenants, the least served: their next request lifts them anyway."""
        idle = sorted((name for name in self.counters if name not in self._queues), key=lambda n: self.counters[n])
        for name in islice(idle, len(idle) // 2):
            if name != self._last_to_leave:
                del self.counters[name]
