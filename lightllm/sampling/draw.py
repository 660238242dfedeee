"""Temperature, min_p, top_k and top_p, then one token drawn from what is left.

The filters apply in this order, each to what the one before left, as in vLLM:

    temperature   logits / temperature
    min_p         keep tokens with probability >= min_p * the largest probability
    top_k         keep the k likeliest
    top_p         keep the smallest set of the likeliest whose share of what was left reaches p; at least one token

All three keep a token exactly when its probability reaches some threshold, so tokens as likely as the last one kept
are kept, too, and the outcome does not depend on how ties are ordered. Thresholds are found without a sort.

The draw inverts the cumulative distribution over the kept tokens in the order of their ids: the first id at which it
exceeds u * total. Weights are integers (see `weights`), so a token of weight 0 is never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightllm.kernels.transfer import Transfer, Uploaded
from lightllm.protocol.plan import Int32, OpenedRow
from lightllm.sampling.likeliest import likeliest
from lightllm.sampling.stage import HostBatch
from lightllm.sampling.uniforms import uniforms
from lightllm.sampling.weights import largest_threshold, rows_per_block, weigh

HEAD = 256
"""Up to this k, the likeliest tokens are listed; above it, a threshold search finds the value of the last one."""


@dataclass(frozen=True, slots=True)
class DrawGroup:
    """What rows begin to end of a draw need.

    `head`: how many of the likeliest tokens, 0 when no row has a short top_k; `wide_top_p`: some row has a top_p
    whose set need not lie within its head.
    """

    begin: int
    end: int
    head: int
    temperature: bool
    min_p: bool
    long_k: bool
    top_p: bool
    wide_top_p: bool


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """D rows that draw: indices [D] in the batch (None: all of it), parameters [D, 1], groups of rows."""

    indices: Uploaded | None
    temperature: Uploaded
    min_p: Uploaded
    top_k: Uploaded
    top_p: Uploaded
    uniforms: Uploaded
    groups: tuple[DrawGroup, ...]

    @property
    def filtered(self) -> bool:
        """Some row has a top_k or a top_p."""
        return any(group.head or group.long_k or group.top_p for group in self.groups)


class DrawParameters:
    """What each row asked for, in numpy arrays; a filter that is off has a value that keeps everything."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._group_rows = rows_per_block(device.type, vocab_size)
        self._greedy = np.ones(max_rows, np.bool_)
        self._temperature = np.ones(max_rows, np.float32)
        self._min_p = np.zeros(max_rows, np.float32)
        self._top_k = np.full(max_rows, vocab_size, np.int64)
        self._top_p = np.ones(max_rows, np.float64)
        self._seeds = np.zeros(max_rows, np.uint64)

    def open(self, opened: OpenedRow) -> None:
        row, params = opened.row, opened.params
        self._greedy[row] = params.greedy
        self._temperature[row] = params.temperature
        self._min_p[row] = params.min_p
        self._top_k[row] = params.top_k if 0 < params.top_k < self._vocab_size else self._vocab_size
        self._top_p[row] = params.top_p
        self._seeds[row] = opened.seed & 0xFFFF_FFFF_FFFF_FFFF

    def plan(self, batch: HostBatch, transfer: Transfer) -> DrawPlan | None:
        """The draw of the rows that are not greedy; None when all are."""
        drawn = np.flatnonzero(~self._greedy[batch.rows])
        if not len(drawn):
            return None
        rows = batch.rows[drawn]
        return DrawPlan(
            indices=None if len(drawn) == len(batch.rows) else transfer.add(drawn),
            temperature=transfer.add(self._temperature[rows, None]),
            min_p=transfer.add(self._min_p[rows, None]),
            top_k=transfer.add(self._top_k[rows, None]),
            top_p=transfer.add(self._top_p[rows, None]),
            uniforms=transfer.add(uniforms(self._seeds[rows], batch.lengths[drawn])[:, None]),
            groups=tuple(self._groups(rows)),
        )

    def _groups(self, rows: Int32) -> list[DrawGroup]:
        """The draw's rows [D] in blocks, and what each block needs."""
        begins = np.arange(0, len(rows), self._group_rows)
        ends = [*begins[1:].tolist(), len(rows)]
        top_k, with_top_p = self._top_k[rows], self._top_p[rows] < 1
        limited = top_k < self._vocab_size
        short = limited & (top_k <= HEAD)
        needs = np.stack(
            [self._temperature[rows] != 1, self._min_p[rows] > 0, limited & ~short, with_top_p, with_top_p & ~short]
        )
        needed = np.logical_or.reduceat(needs, begins, axis=1).tolist()  # [5, groups]
        heads = np.maximum.reduceat(np.where(short, top_k, 0), begins).tolist()
        return [DrawGroup(*group) for group in zip(begins.tolist(), ends, heads, *needed, strict=True)]


def draw(logits: Tensor, best: Tensor, plan: DrawPlan) -> Tensor:
    """Token ids [D] int64 from logits [D, vocab] float32, which are overwritten; best [D, 1] are the row maxima.

    A row whose maximum is not finite gets some id of the vocabulary.
    """
    ids = [_draw_group(logits[g.begin : g.end], best[g.begin : g.end], plan, g) for g in plan.groups]
    return ids[0] if len(ids) == 1 else torch.cat(ids)


def _draw_group(logits: Tensor, best: Tensor, plan: DrawPlan, group: DrawGroup) -> Tensor:
    cumulative = kept_weights(logits, best, plan, group).cumsum(dim=1)  # [G, vocab]
    total = cumulative[:, -1:]
    target = torch.minimum((plan.uniforms.tensor[group.begin : group.end] * total).long(), total - 1)
    found = torch.searchsorted(cumulative, target, right=True)  # [G, 1]
    return found.clamp_(max=logits.shape[1] - 1).squeeze(1)


def kept_weights(logits: Tensor, best: Tensor, plan: DrawPlan, group: DrawGroup) -> Tensor:
    """Integer weights [G, vocab] of a group's logits [G, vocab], which are overwritten; 0 for what is filtered out."""
    e = logits.sub_(best)
    if group.temperature:
        e.div_(plan.temperature.tensor[group.begin : group.end])
    weights = weigh(e.exp_())
    _filter(e, weights, plan, group)
    return weights


def _filter(e: Tensor, weights: Tensor, plan: DrawPlan, group: DrawGroup) -> None:
    """Set the weights [G, vocab] of tokens that are not kept to 0."""
    rows = slice(group.begin, group.end)
    head = likeliest(e, group.head)[0] if group.head else None  # [G, head]
    thresholds = []
    if group.min_p:
        thresholds.append(plan.min_p.tensor[rows])
    if head is not None:
        thresholds.append(_short_k(head, plan.top_k.tensor[rows]))
    if group.long_k:
        thresholds.append(_long_k(e, plan.top_k.tensor[rows]))
    for threshold in thresholds:
        weights.mul_(e >= threshold)
    if group.top_p:
        inside = None if group.wide_top_p else head
        weights.mul_(e >= _nucleus(e, weights, plan.top_p.tensor[rows], inside))


def _short_k(head: Tensor, top_k: Tensor) -> Tensor:
    """The k-th largest value [G, 1] among the sorted head [G, K]; 0 for a row whose k lies beyond the head."""
    kth = head.gather(1, top_k.clamp(max=head.shape[1]) - 1)
    return kth.masked_fill_(top_k > head.shape[1], 0.0)


def _long_k(e: Tensor, top_k: Tensor) -> Tensor:
    """The k-th largest value [G, 1] of e [G, vocab]."""
    return largest_threshold(e, top_k.new_ones(1, 1).expand(e.shape), top_k)


def _nucleus(e: Tensor, weights: Tensor, top_p: Tensor, head: Tensor | None) -> Tensor:
    """The threshold [G, 1] at which the weights kept so far reach their share top_p [G, 1]; 0 where that is 1.

    `head` [G, K] holds the largest values when they include all that is left of every row with a top_p; then only
    ties with the last of them may lie outside, and those are kept.
    """
    total = weights.sum(dim=1, keepdim=True)
    need = torch.minimum((top_p * total).ceil_().long(), total).clamp_(min=1)
    if head is None:
        threshold = largest_threshold(e, weights, need)
    else:
        reached = torch.searchsorted(weigh(head).cumsum(dim=1), need)
        threshold = head.gather(1, reached.clamp_(max=head.shape[1] - 1))
    return threshold.masked_fill_(top_p >= 1, 0.0)
