"""Who leaves when memory runs out.

The oldest request always stays, so somebody always advances and everybody becomes the oldest in the end. Among the
others a request that was preempted less often goes first, so that the burden goes round; then

    newest     the one that came last
    cheapest   the one with the fewest tokens to compute again: what others keep in the prefix tree costs nothing

A request whose leaving would free nothing is no candidate unless all are like that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightllm.config.settings import PreemptionName
from lightllm.memory.token_memory import TokenMemory
from lightllm.scheduler.lengths import Lengths
from lightllm.scheduler.request import Request


def choose_victim(
    running: Sequence[Request], spared: set[int], memory: TokenMemory, lengths: Lengths, order: PreemptionName
) -> Request | None:
    """The request to preempt; never the oldest of `running`, none of the serials in `spared`. None if nobody can."""
    oldest = min(request.serial for request in running)
    eligible = [r for r in running if r.serial != oldest and r.serial not in spared]
    if not eligible:
        return None
    index = np.array([request.index for request in eligible], np.int64)
    private = lengths.computed[index] - lengths.matched[index]
    freed = memory.exclusive(index) + private
    if freed.any():
        eligible = [request for request, count in zip(eligible, freed.tolist(), strict=True) if count]
        freed = freed[freed > 0]
    if order == "newest":
        return max(eligible, key=lambda r: r.serial)
    cost = dict(zip((r.serial for r in eligible), freed.tolist(), strict=True))
    return min(eligible, key=lambda r: (r.num_preemptions, cost[r.serial], -r.serial))
