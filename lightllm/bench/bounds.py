"""What a step cannot be faster than: the bytes and operations it needs, over what the machine can do.

Letters: T tokens computed, S sequences, N logit rows, P block weights, of which W need only the N tokens (the last
block's after its keys and values: output, gate, up and down), V vocabulary, H hidden size, L layers.

    bytes       (P - W + (W + V H if N)) * dtype + KV per layer and token * (tokens attended to in each layer + L T)
    operations  2 T (P - W) + 2 N (W + V H) + 4 Hq D * query-key pairs in each layer

In the last layer the N tokens alone attend. Each weight and each sequence's KV is counted once per step; activations,
norms and embedding rows are left out, so the bound is a little low. A sliding window counts as full attention.
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
    """What one step has to do. `attended` is the sum of all sequences' lengths, `pairs` the query-key products, and
    `wanted` both of these for the tokens that need logits, one of a sequence."""

    num_tokens: int
    num_logits: int
    attended: int
    pairs: int
    wanted: int

    @classmethod
    def of(cls, plan: StepPlan) -> StepWork:
        starts, lens = plan.starts.astype(np.int64), plan.lens.astype(np.int64)
        pairs = int((lens * starts + lens * (lens + 1) // 2).sum())
        ends = starts + lens
        return cls(plan.num_tokens, int(plan.sampled.sum()), int(ends.sum()), pairs, int(ends[plan.sampled].sum()))


@dataclass(frozen=True, slots=True)
class ModelWork:
    """A model in the numbers that bound it."""

    num_layers: int
    block_params: int
    last_params: int
    """Of these, those that only tokens with logits need."""
    head_params: int
    kv_bytes_per_layer: int
    """Of one token."""
    flops_per_pair: int
    """In one layer."""
    bytes_per_param: int

    @classmethod
    def of(cls, spec: DecoderSpec, dtype: torch.dtype) -> ModelWork:
        qkv = spec.hidden_size * (spec.num_q_heads + 2 * spec.num_kv_heads) * spec.head_dim
        return cls(
            num_layers=spec.num_layers,
            block_params=spec.block_params,
            last_params=spec.layer_params - qkv,
            head_params=spec.head_params,
            kv_bytes_per_layer=spec.kv_layout(dtype).bytes_per_token // spec.num_layers,
            flops_per_pair=4 * spec.num_q_heads * spec.head_dim,
            bytes_per_param=dtype.itemsize,
        )

    def bytes_of(self, work: StepWork) -> int:
        """Bytes the step must move."""
        params = self.block_params + self.head_params if work.num_logits else self.block_params - self.last_params
        kv = (self.num_layers - 1) * work.attended + work.wanted + self.num_layers * work.num_tokens
        return params * self.bytes_per_param + self.kv_bytes_per_layer * kv

    def flops_of(self, work: StepWork) -> int:
        """Operations the step must do."""
        products = 2 * work.num_tokens * (self.block_params - self.last_params)
        products += 2 * work.num_logits * (self.last_params + self.head_params)
        return products + self.flops_per_pair * ((self.num_layers - 1) * work.pairs + work.wanted)

    def bound(self, work: StepWork, machine: Machine) -> float:
        """Seconds below which the step cannot go."""
        return max(self.bytes_of(work) / machine.bandwidth, self.flops_of(work) / machine.peak)
