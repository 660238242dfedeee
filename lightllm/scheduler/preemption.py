"""Who leaves when memory runs out.

The oldest request always stays, so somebody always advances and everybody becomes the oldest in the end. Nobody is
sent away more than three times while somebody else can go.

    newest     the one that came last
    cheapest   of those whose leaving makes room for the next 64 steps (or, failing that, of all) the one with the
               fewest tokens to compute again: what others keep in the prefix tree costs nothing. One that was
               preempted before goes first: it has missed its targets already, so nobody else need miss theirs.

A request whose leaving would free nothing is no candidate unless all are like that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightllm.config.settings import PreemptionName
from lightllm.memory.token_memory import TokenMemory
from lightllm.scheduler.lengths import Lengths
from lightllm.scheduler.request import Request

MOST_PREEMPTIONS = 3
_HORIZON = 64


def choose_victim(
    running: Sequence[Request], spared: set[int], memory: TokenMemory, lengths: Lengths, order: PreemptionName
) -> Request | None:
    """The request to preempt; never the oldest of `running`, none of the serials in `spared`. None if nobody can."""
    oldest = min(request.serial for request in running)
    eligible = [r for r in running if r.serial != oldest and r.serial not in spared]
    if not eligible:
        return None
    index = np.array([request.index for request in eligible], np.int64)
    freed = memory.exclusive(index) + lengths.computed[index] - lengths.matched[index]
    wanted = _HORIZON * len(running)

    def rank(candidate: tuple[Request, int]) -> tuple[bool, bool, bool, bool, int, int]:
        request, count = candidate
        worn_out = request.num_preemptions >= MOST_PREEMPTIONS
        if order == "newest":
            return count == 0, worn_out, False, False, 0, -request.serial
        enough = count >= wanted
        cost = count if enough else -count
        return count == 0, worn_out, request.num_preemptions == 0, not enough, cost, -request.serial

    return min(zip(eligible, freed.tolist(), strict=True), key=rank)[0]
