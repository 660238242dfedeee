"""The k likeliest tokens in one definite order: by value, then by the lowest id.

A vocabulary is searched in blocks. The k best tokens lie in the k best blocks, blocks being ordered by their largest
value, then by the lowest index: each better block holds a token that comes before all of a worse one. So only block
maxima and k blocks are searched, not the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
NOTHING = float("-inf")
_LOW_HALF = (1 << 32) - 1


def likeliest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of values [L, vocab] float32, k <= vocab: those [L, k], and their ids [L, k] int64."""
    vocab_size = values.shape[1]
    if k == vocab_size:
        found = values.sort(dim=1, descending=True, stable=True)
        return found.values, found.indices
    if k * BLOCK < vocab_size // 2:
        values, ids = _best_blocks(values, k)
        order = _first(values, ids, k)
        return values.gather(1, order), ids.gather(1, order)
    order = _first(values, torch.arange(vocab_size, device=values.device), k)
    return values.gather(1, order), order


def _best_blocks(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All tokens of the k best blocks: values and ids [L, k * BLOCK], in no order."""
    missing = -values.shape[1] % BLOCK
    padded = torch.nn.functional.pad(values, (0, missing), value=NOTHING) if missing else values
    blocks = padded.view(len(values), padded.shape[1] // BLOCK, BLOCK)
    best = blocks.amax(dim=2)  # [L, blocks]
    chosen = _first(best, torch.arange(best.shape[1], device=values.device), k)  # [L, k]
    ids = chosen[:, :, None] * BLOCK + torch.arange(BLOCK, device=values.device)
    inside = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK))
    return inside.flatten(1), ids.flatten(1)


def _first(values: Tensor, ids: Tensor, k: int) -> Tensor:
    """Columns [L, k] of the k largest values [L, M], ties by the lowest of ids [M] or [L, M]."""
    keys = (_ordered_bits(values).long() << 32) | (_LOW_HALF - ids)
    return keys.topk(k).indices


def _ordered_bits(values: Tensor) -> Tensor:
    """int32 that compare as the float32 values do; +0 and -0 are one."""
    bits = (values + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFF_FFFF)
