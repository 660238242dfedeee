"""What a step cannot be faster than: the bytes and operations it needs, over what the machine can do.

Letters: T tokens computed, S sequences, N logit rows, P block weights, V vocabulary, H hidden size.

    bytes       (P + V H if N) * dtype + KV per token * (tokens attended to + T)
    operations  2 T P + 2 N V H + 4 Hq D layers * query-key pairs

Each weight and each sequence's KV is counted once per step; activations, norms and embedding rows are left out, so
the bound is a little low. A sliding window counts as full attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lightllm.models.decoder import DecoderSpec
from lightllm.protocol.plan import StepPlan


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured limits: bytes read per second, operations per second in the model's dtype."""

    bandwidth: float
    peak: float


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step has to do. `attended` is the sum of all sequences' lengths, `pairs` the query-key products."""

    num_tokens: int
    num_logits: int
    attended: int
    pairs: int

    @classmethod
    def of(cls, plan: StepPlan) -> StepWork:
        starts, lens = plan.starts.astype(np.int64), plan.lens.astype(np.int64)
        pairs = int((lens * starts + lens * (lens + 1) // 2).sum())
        return cls(plan.num_tokens, int(plan.sampled.sum()), int((starts + lens).sum()), pairs)


@dataclass(frozen=True, slots=True)
class ModelWork:
    """A model in the numbers that bound it."""

    block_params: int
    head_params: int
    kv_bytes_per_token: int
    flops_per_pair: int
    bytes_per_param: int

    @classmethod
    def of(cls, spec: DecoderSpec, dtype: torch.dtype) -> ModelWork:
        return cls(
            block_params=spec.block_params,
            head_params=spec.head_params,
            kv_bytes_per_token=spec.kv_layout(dtype).bytes_per_token,
            flops_per_pair=4 * spec.num_q_heads * spec.head_dim * spec.num_layers,
            bytes_per_param=dtype.itemsize,
        )

    def bytes_of(self, work: StepWork) -> int:
        """Bytes the step must move."""
        params = self.block_params + (self.head_params if work.num_logits else 0)
        return params * self.bytes_per_param + self.kv_bytes_per_token * (work.attended + work.num_tokens)

    def flops_of(self, work: StepWork) -> int:
        """Operations the step must do."""
        products = 2 * work.num_tokens * self.block_params + 2 * work.num_logits * self.head_params
        return products + self.flops_per_pair * work.pairs

    def bound(self, work: StepWork, machine: Machine) -> float:
        """Seconds below which the step cannot go."""
        return max(self.bytes_of(work) / machine.bandwidth, self.flops_of(work) / machine.peak)
