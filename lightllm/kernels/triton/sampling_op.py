"""Tokens chosen from logits on a GPU: launches of the kernels in `sampling` and `sampling_filters`.

Greedy is one launch, a draw two more, and a top_k or top_p anywhere in the batch five. Nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm.kernels.triton.launch import launcher_for, next_power_of_2
from lightllm.kernels.triton.sampling import greedy_kernel, pick_kernel, sum_kernel
from lightllm.kernels.triton.sampling_filters import (
    FIRST_PIVOTS,
    STATE_SIZE,
    candidate_kernel,
    tally_kernel,
    threshold_kernel,
)

PART = 1024
"""Logits whose weights share one sum; a draw scans one such part."""
CAPACITY = 1 << 14
"""Tokens of a row that can be written down as candidates for a threshold."""
BLOCK = 2048
"""Logits per program of a tally: so few that their count and the sum of their weights, below 2**52, share an int64."""
TILE = 1024


@dataclass(frozen=True, slots=True)
class Greedy:
    """Of N rows: ids int32 of the largest logit, the lowest of equals; bad int32, 1 for a NaN, a positive infinity or
    nothing but negative ones, and the id is 0; best float32: the largest logit, meaningless where bad.

    ids and bad lie side by side, `both` [2, N], so that one copy takes them to the host.
    """

    both: Tensor
    best: Tensor

    @property
    def ids(self) -> Tensor:
        return self.both[0]

    @property
    def bad(self) -> Tensor:
        return self.both[1]


History = tuple[Tensor, Tensor, Tensor]
"""Where chosen ids are noted: tokens [rows, length] int32, and of each of N rows of logits its row [N] and the position
[N] of its last known token; the id goes to tokens[row, position + 1]."""


@dataclass(frozen=True, slots=True)
class DrawInputs:
    """D rows that draw: indices [D] int64 into the N rows (None: all of them), and for each temperature and min_p
    float32, top_k int64, top_p and uniforms float64. `filtered`: some row has a top_k or a top_p."""

    indices: Tensor | None
    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    uniforms: Tensor
    filtered: bool


class GreedyChooser:
    """Finds the likeliest tokens of up to `max_rows` rows; one for each stream of launches, since it has counters."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._counters = torch.zeros(max_rows, dtype=torch.int32, device=device)

    def __call__(self, logits: Tensor, history: History | None = None) -> Greedy:
        """The likeliest token of each row of logits [N, V], rows of which may be strided, in one launch."""
        num_rows, size = logits.shape
        assert num_rows <= len(self._counters), f"{num_rows} rows, at most {len(self._counters)}"
        assert size == 0 or logits.stride(1) == 1
        found = Greedy(
            torch.empty(2, num_rows, dtype=torch.int32, device=logits.device),
            torch.empty(num_rows, dtype=torch.float32, device=logits.device),
        )
        if not num_rows:
            return found
        block, num_warps = _greedy_block(num_rows)
        blocks = -(-size // block)
        tokens, rows, positions = history or (found.ids.view(1, -1), found.ids, found.ids)
        assert tokens.stride(1) == 1
        greedy_kernel[(blocks, num_rows)](
            logits,
            found.best.new_empty(num_rows, blocks),
            found.ids.new_empty(num_rows, blocks),
            self._counters,
            found.ids,
            found.bad,
            found.best,
            tokens,
            rows,
            positions,
            logits.stride(0),
            tokens.stride(0),
            size,
            blocks,
            HISTORY=history is not None,
            BLOCK=block,
            BLOCKS=next_power_of_2(blocks),
            num_warps=num_warps,
            **launcher_for(logits.device).options,
        )
        return found


REHEARSED_ROWS = (1, 8, 64)
"""Numbers of rows for which kernels differ: `_greedy_block`, and the parts in a block of `pick`."""


def _greedy_block(num_rows: int) -> tuple[int, int]:
    """Logits per program, and its warps: small programs fill the device when there are few rows."""
    if num_rows <= 4:
        return 1024, 4
    return (2048, 4) if num_rows <= 32 else (8192, 8)


def pick(logits: Tensor, greedy: Greedy, inputs: DrawInputs, cuts: Tensor, history: History | None = None) -> None:
    """Replace the ids of the rows that draw, in two launches. A token is kept when its probability, relative to the
    likeliest one's, reaches its row's cut of `cuts` [D] float32; bad rows are left alone."""
    count, size = len(inputs.uniforms), logits.shape[1]
    if not count:
        return
    parts = -(-size // PART)
    sums = torch.empty(count, parts, dtype=torch.int64, device=logits.device)
    indices = greedy.ids if inputs.indices is None else inputs.indices
    options = launcher_for(logits.device).options
    tokens, rows, positions = history or (greedy.both, greedy.ids, greedy.ids)
    in_block = 2 if count <= 32 else 4
    sum_kernel[(-(-parts // in_block), count)](
        logits,
        indices,
        greedy.best,
        inputs.temperature,
        cuts,
        sums,
        logits.stride(0),
        size,
        parts,
        HAS_INDICES=inputs.indices is not None,
        PART=PART,
        PARTS=in_block,
        num_warps=2 * in_block,
        **options,
    )
    pick_kernel[(count,)](
        logits,
        indices,
        greedy.best,
        inputs.temperature,
        cuts,
        inputs.uniforms,
        sums,
        greedy.ids,
        tokens,
        rows,
        positions,
        logits.stride(0),
        tokens.stride(0),
        size,
        parts,
        HISTORY=history is not None,
        HAS_INDICES=inputs.indices is not None,
        PART=PART,
        PARTS=next_power_of_2(parts),
        num_warps=4,
        **options,
    )


class Filters:
    """Finds the thresholds of one device."""

    def __init__(self, device: torch.device) -> None:
        self._pivots = torch.tensor(FIRST_PIVOTS, dtype=torch.int32, device=device)

    def cuts(self, logits: Tensor, greedy: Greedy, inputs: DrawInputs) -> Tensor:
        """The least probability that is kept, relative to the likeliest token's [D] float32, of each row that draws
        from logits [N, V]: the largest of what its min_p, top_k and top_p ask for. Four launches."""
        count, size = len(inputs.uniforms), logits.shape[1]
        device = logits.device
        states = torch.zeros(count, STATE_SIZE, dtype=torch.int64, device=device)
        candidates = torch.empty(count, min(CAPACITY, size), dtype=torch.int32, device=device)
        cuts = torch.empty(count, dtype=torch.float32, device=device)
        if not count:
            return cuts
        common = (
            logits,
            greedy.ids if inputs.indices is None else inputs.indices,
            greedy.best,
            inputs.temperature,
            inputs.min_p,
            inputs.top_k,
            inputs.top_p,
            self._pivots,
            states,
        )
        shape = (logits.stride(0), size)
        flags = {"HAS_INDICES": inputs.indices is not None, **launcher_for(device).options}
        grid = (-(-size // BLOCK), count)
        capacity = candidates.shape[1]
        tally_kernel[grid](*common, *shape, SECOND=False, BLOCK=BLOCK, num_warps=4, **flags)
        tally_kernel[grid](*common, *shape, SECOND=True, BLOCK=BLOCK, num_warps=4, **flags)
        candidate_kernel[grid](*common, candidates, *shape, CAPACITY=capacity, BLOCK=BLOCK, num_warps=4, **flags)
        threshold_kernel[(count,)](
            *common, candidates, cuts, *shape, CAPACITY=capacity, TILE=TILE, num_warps=8, **flags
        )
        return cuts


class Chooser:
    """Chooses the tokens of up to `max_rows` rows on one device, as `lightllm.sampling.sampler` defines it."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._greedy = GreedyChooser(max_rows, device)
        self._filters = Filters(device)

    def __call__(
        self, logits: Tensor, inputs: DrawInputs | None, history: History | None = None, known: Greedy | None = None
    ) -> Tensor:
        """Token ids, 0 where bad, and bad flags [2, N] int32, from logits [N, V], which are left as they are.

        `known`: the likeliest tokens, if they were found and noted before; those of rows that draw are replaced.
        """
        greedy = self._greedy(logits, history) if known is None else known
        if inputs is not None:
            cuts = self._filters.cuts(logits, greedy, inputs) if inputs.filtered else inputs.min_p
            pick(logits, greedy, inputs, cuts, history)
        return greedy.both

    def rehearse(self, num_rows: int, size: int, dtype: torch.dtype, history: Tensor) -> None:
        """Launch each kernel that a batch of so many rows of logits of this size and dtype may need, whatever its
        parameters, on tensors of no meaning: for launches that are compiled and not run."""
        device = history.device
        logits = torch.empty(num_rows, size, dtype=dtype, device=device)
        single, double = (
            torch.empty(num_rows, 1, dtype=kind, device=device) for kind in (torch.float32, torch.float64)
        )
        numbers = torch.empty(num_rows, 1, dtype=torch.int64, device=device)
        for places in (numbers.view(-1), numbers.view(-1).int()):  # of eager steps and of graphs
            for indices in (None, numbers.view(-1)):
                inputs = DrawInputs(indices, single, single, numbers, double, double, filtered=True)
                self(logits, inputs, (history, places, places))
