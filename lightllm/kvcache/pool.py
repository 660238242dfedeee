"""The KV pool: for each layer a key and a value tensor with one row per slot, and one spare row that padding writes to.

    keys[layer], values[layer]   [total + 1, Hk, D]

Which slot holds which token is the business of `lightllm.memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Shape of one token's keys and values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KvPool:
    """Preallocated keys and values for `total` tokens. Not cleared: a host gives memory when it is first written."""

    def __init__(self, layout: KvLayout, total: int, device: torch.device) -> None:
        shape = (layout.num_layers, total + 1, layout.num_kv_heads, layout.head_dim)
        self.layout = layout
        self.total = total
        self._keys = torch.empty(shape, dtype=layout.dtype, device=device)
        self._values = torch.empty(shape, dtype=layout.dtype, device=device)
        self._keys[:, total] = 0
        self._values[:, total] = 0
        self.keys: tuple[Tensor, ...] = tuple(self._keys)
        self.values: tuple[Tensor, ...] = tuple(self._values)
