"""Probabilities as integers, so that sums of them are exact.

A float sum depends on the order of its terms, and that order on the batch's shape, the number of threads and the chip.
Integers add up to the same total in any order: what is kept and what is drawn then depends on the row alone.

    e = exp((logit - best) / temperature)     float32 in [0, 1], 1 for the likeliest token
    w = floor(e * 2**40)                      int64; up to 2**22 of them cannot overflow

A token 2**40 times less likely than the likeliest weighs nothing and is never drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_BITS = 40
MAX_VOCAB_SIZE = 1 << 22
BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Logits treated at a time, so that intermediate results stay small, and in the cache of a CPU."""

_DIGIT_BITS = 10
_BINS = 1 << _DIGIT_BITS
_SHIFTS = (20, 10, 0)


def rows_per_block(device_type: str, vocab_size: int) -> int:
    """Rows of logits to treat at a time; how rows are grouped never changes what comes out."""
    return max(1, BLOCK_ELEMENTS.get(device_type, BLOCK_ELEMENTS["cuda"]) // vocab_size)


def weigh(e: Tensor) -> Tensor:
    """Integer weights [G, vocab] int64 of relative probabilities e [G, vocab] float32."""
    return (e * 2.0**WEIGHT_BITS).long()


def log_total(logits: Tensor, best: Tensor) -> Tensor:
    """log(sum(exp(logits))) [G, 1] float64 of logits [G, vocab] whose row maxima are best [G, 1]."""
    total = weigh((logits - best).exp_()).sum(dim=1, keepdim=True)
    return best.double() + (total.double() * 2.0**-WEIGHT_BITS).log_()


def largest_threshold(e: Tensor, weights: Tensor, need: Tensor) -> Tensor:
    """The largest t [G, 1] for which the weights [G, vocab] of all tokens with e >= t sum to at least need [G, 1].

    `e` lies in [0, 1]; `need` lies between 1 and the sum of the weights. The bits of a float32 in [0, 1], read as an
    integer below 2**30, keep its order; they are searched ten bits at a time, each time with one histogram. In
    the second and third the bins span one bin of the one before; what lies below or above shares the outer two:

        bits    0 ......... base ................ base + 1024 * 2**shift ......... 2**30
        bin     |     0     |  1  |  2  |  ....  | 1024 |         1025              |
    """
    bits = e.view(torch.int32)  # [G, vocab]
    base = torch.zeros_like(need, dtype=torch.int32)  # [G, 1]
    for shift in _SHIFTS:
        bins = ((bits - base) >> shift).clamp_(-1, _BINS).add_(1).long()
        histogram = need.new_zeros(len(e), _BINS + 2).scatter_add_(1, bins, weights)
        at_least = histogram.flip(1).cumsum(dim=1)  # [G, bins]: of the last bin, the last two, ...
        reached = (at_least >= need).sum(dim=1, keepdim=True)
        base += ((reached - 2) << shift).int()
    return base.view(torch.float32)
