"""Attention over the token-level pool in plain torch, grouped by length.

Bytes moved: every key and value of each sequence once per layer. Decodes of similar length form one batched
product (at most a quarter of it padding); a prompt chunk is a product of its own. The query heads that share a
key/value head are laid along the query axis, so nothing is repeated in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lightllm.kernels.ops.contracts import AttentionParams, SequenceLayout

MOST_PADDING = 1.25
"""A group's longest sequence is at most this many times its shortest."""
FEWEST_SLOTS = 64
"""Sequences shorter than this count as this long when grouping: their padding costs nothing."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences computed together: their tokens [B, L] in the flat batch, slots [B, K], and what they may see.

    `positions` [B, L] are the queries' positions and `kv_lens` [B]; `mask` [B, 1, L, K] is true where a query sees a
    key under plain causal attention, None when every query sees every key.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class TorchAttentionPlan:
    groups: tuple[Group, ...]
    num_tokens: int


class Scratch:
    """A buffer that gathered rows go to, layer after layer: fresh memory for each would cost more than the copy."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def gather(self, cache: Tensor, slots: Tensor) -> Tensor:
        """cache [N, Hk, D] at slots [B, K] -> [B, K, Hk, D], valid until the next call."""
        rows = cache.view(len(cache), -1)
        wanted = slots.numel() * rows.shape[1]
        if self._buffer.numel() < wanted or self._buffer.dtype != cache.dtype:
            self._buffer = torch.empty(wanted * 2, dtype=cache.dtype)
        out = self._buffer[:wanted].view(slots.numel(), rows.shape[1])
        torch.index_select(rows, 0, slots.flatten(), out=out)
        return out.view(*slots.shape, *cache.shape[1:])


class TorchAttention:
    """The reference attention backend."""

    def __init__(self) -> None:
        self._keys, self._values = Scratch(), Scratch()

    def plan(self, layout: SequenceLayout, table: Tensor) -> TorchAttentionPlan:
        firsts = np.concatenate([[0], np.cumsum(layout.lens)])
        groups = [self._group(layout, members, firsts, table) for members in group_by_length(layout)]
        return TorchAttentionPlan(tuple(groups), int(firsts[-1]))

    def run(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: object, params: AttentionParams) -> Tensor:
        assert isinstance(plan, TorchAttentionPlan)
        out = torch.empty_like(q)
        for group in plan.groups:
            keys, values = self._keys.gather(k_cache, group.slots), self._values.gather(v_cache, group.slots)
            out[group.tokens] = _attend(q[group.tokens], keys, values, group, params)
        return out

    def _group(self, layout: SequenceLayout, members: NDArray[np.int64], firsts: np.ndarray, table: Tensor) -> Group:
        """All members have equally many tokens in this step."""
        count = int(layout.lens[members[0]])
        kv_lens = torch.from_numpy(layout.kv_lens[members].astype(np.int64))
        longest = int(layout.kv_lens[members].max())
        offsets = np.arange(count)
        tokens = torch.from_numpy(firsts[members][:, None] + offsets)  # [B, L]
        positions = torch.from_numpy(layout.starts[members].astype(np.int64)[:, None] + offsets)  # [B, L]
        rows = torch.from_numpy(layout.rows[members].astype(np.int64))
        slots = table[rows, :longest]  # [B, K]
        keys = torch.arange(longest)
        seen = keys <= positions.unsqueeze(-1)  # [B, L, K]
        slots = torch.where(keys < kv_lens[:, None], slots, slots[:, :1])
        mask = None if bool(seen.all()) else seen.unsqueeze(1)
        return Group(tokens, slots, positions, mask)


def group_by_length(layout: SequenceLayout) -> list[NDArray[np.int64]]:
    """Indices of sequences that are computed together: decodes of similar length; each longer chunk alone."""
    groups: list[NDArray[np.int64]] = [np.array([i]) for i in np.flatnonzero(layout.lens != 1)]
    single = np.flatnonzero(layout.lens == 1)
    single = single[np.argsort(layout.starts[single], kind="stable")]
    while len(single):
        limit = max(FEWEST_SLOTS, int((layout.starts[single[0]] + 1) * MOST_PADDING))
        fitting = int(np.searchsorted(layout.starts[single] + 1, limit, side="right"))
        groups.append(single[:fitting])
        single = single[fitting:]
    return groups


def _attend(q: Tensor, k: Tensor, v: Tensor, group: Group, params: AttentionParams) -> Tensor:
    """q [B, L, Hq, D], k and v [B, K, Hk, D] -> [B, L, Hq, D]."""
    batch, length, num_q_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    shared = num_q_heads // num_kv_heads
    k, v = k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)  # [B, Hk, K, D]
    if params.soft_cap is not None or params.alibi_slopes is not None:
        return _attend_explicitly(q, k, v, group, params)
    queries = q.view(batch, length, num_kv_heads, shared, head_dim).permute(0, 2, 3, 1, 4)
    queries = queries.reshape(batch, num_kv_heads, shared * length, head_dim)
    mask = _windowed(group, params, k.shape[2])
    if mask is not None and length > 1:
        mask = mask.repeat(1, 1, shared, 1)  # [B, 1, G L, K]
    out = functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=params.scale)
    out = out.view(batch, num_kv_heads, shared, length, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, num_q_heads, head_dim)


def _windowed(group: Group, params: AttentionParams, num_keys: int) -> Tensor | None:
    """The group's mask, narrowed to the sliding window if there is one and it matters."""
    if params.window is None or num_keys <= params.window:
        return group.mask
    inside = torch.arange(num_keys) > group.positions.unsqueeze(-1) - params.window  # [B, L, K]
    inside = inside.unsqueeze(1)
    return inside if group.mask is None else inside & group.mask


def _attend_explicitly(q: Tensor, k: Tensor, v: Tensor, group: Group, params: AttentionParams) -> Tensor:
    """The same, spelled out in float32, for scores that are capped or biased."""
    shared = q.shape[2] // k.shape[1]
    keys, values = (t.float().repeat_interleave(shared, dim=1) for t in (k, v))
    scores = q.float().transpose(1, 2) @ keys.transpose(2, 3) * params.scale  # [B, Hq, L, K]
    if params.soft_cap is not None:
        scores = params.soft_cap * torch.tanh(scores / params.soft_cap)
    if params.alibi_slopes is not None:
        distance = torch.arange(keys.shape[2]) - group.positions.unsqueeze(-1)  # [B, L, K], not positive where seen
        scores = scores + params.alibi_slopes.view(1, -1, 1, 1) * distance.unsqueeze(1)
    mask = _windowed(group, params, keys.shape[2])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ values).transpose(1, 2).to(q.dtype)
