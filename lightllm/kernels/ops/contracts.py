"""The ops a model is made of, as protocols. An implementation must give what the reference gives, within tolerance.

Letters in shapes: T tokens of the step (a flat run, no padding), S sequences, H hidden size, F feed-forward size,
Hq query heads, Hk key/value heads, D head size, R rotated part of a head (R <= D), N slots of the pool plus one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Int32 = NDArray[np.int32]

Activation = Literal["silu", "gelu", "gelu_tanh"]

NO_TOKEN = -1
"""The id of padding. Its embedding is 0, and in graphs of decodes so is what follows from it where nothing adds a bias:
multiplying by 0 takes less power."""


class LinearOp(Protocol):
    """A matrix product with weight and bias packed inside."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]."""
        ...

    def add(self, x: Tensor, residual: Tensor) -> None:
        """residual [T, out] += op(x [T, in]), in place; residual is contiguous."""
        ...

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """x [T, in] -> activation(gate) * up [T, out / 2], gate being the first half of the outputs."""
        ...


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How the columns of a fused QKV projection [T, (Hq + 2 Hk) D] split into heads."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    interleaved: bool = False
    """Rotary pairs are (2i, 2i+1) instead of (i, i + R/2)."""

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.num_q_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm weights [D] on every query and key head, before the rotation (Qwen3, section 2)."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """What may vary between layers: the softmax scale, a sliding window (tokens seen, itself included), a soft cap
    on the scores, ALiBi slopes [Hq]."""

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    alibi_slopes: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SequenceLayout:
    """One step's sequences on the host: first position and number of tokens computed [S], and their table rows [S].

    Sequence s attends to positions 0 .. starts[s] + lens[s] - 1 through `table[rows[s]]`.
    """

    rows: Int32
    starts: Int32
    lens: Int32

    @classmethod
    def of_tokens(cls, rows: NDArray[np.integer], positions: NDArray[np.integer]) -> SequenceLayout:
        """Each token as a sequence of its own."""
        return cls(rows.astype(np.int32), positions.astype(np.int32), np.ones(len(rows), np.int32))

    @property
    def kv_lens(self) -> Int32:
        return self.starts + self.lens


class RmsNorm(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, H] / rms(x) * weight [H], statistics in float32."""
        ...


class RotaryStore(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        shape: HeadShape,
        cos: Tensor,
        sin: Tensor,
        norms: HeadNorms | None,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
    ) -> Tensor:
        """Head norms, rotation and the write into the KV pool in one go.

        qkv [T, (Hq + 2 Hk) D]; cos, sin [T, R/2] float32, rows of which may be strided; caches [N, Hk, D];
        slots [T] integers.
        Returns the queries [T, Hq, D]; keys and values are in the pool afterwards.
        """
        ...


class PlaceTokens(Protocol):
    def __call__(self, history: Tensor, table: Tensor, rows: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        """table[rows, positions] = slots in place; returns history[rows, positions].

        history, table [rows, max_len] int32; rows, positions, slots [T] integers. Returns token ids [T] int32.
        """
        ...


class Embed(Protocol):
    def __call__(self, ids: Tensor, weight: Tensor) -> Tensor:
        """Rows of weight [vocab, H] at ids [T] integers -> [T, H], a new tensor; zeros where an id is NO_TOKEN."""
        ...


class Move(Protocol):
    def __call__(self, source: Tensor, target: Tensor) -> None:
        """target = source, both contiguous and of as many bytes, a multiple of 4, as are the addresses of both; in the
        order of the device's other work.

        On a GPU either may be pinned host memory, which its owner leaves alone until the device is done with it.
        """
        ...


class AttentionBackend(Protocol):
    """Attention over the pool in two phases: `plan` does the host work of a step once, `run` serves each layer."""

    def plan(self, layout: SequenceLayout, table: Tensor) -> object:
        """table [rows, max_len] int32 on the device maps (row, position) to a slot."""
        ...

    def run(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: object, params: AttentionParams) -> Tensor:
        """q [T, Hq, D], causal over each sequence's own positions -> [T, Hq, D]."""
        ...


@dataclass(frozen=True, slots=True)
class KernelSet:
    """The implementations chosen for one engine, and why each was chosen (`reasons`: op name -> text)."""

    rms_norm: RmsNorm
    rotary_store: RotaryStore
    place_tokens: PlaceTokens
    embed: Embed
    move: Move
    attention: AttentionBackend
    pack_linear: Callable[[Tensor, Tensor | None], LinearOp]
    reasons: dict[str, str]
