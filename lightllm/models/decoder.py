"""The decoder skeleton: pre-norm blocks of attention and gated feed-forward, as most families are.

A model file states only what differs, as a `DecoderSpec`; a family with another data flow writes its own block.

    x = embedding(ids)
    for each block:   x = x + attention(norm(x));   x = x + feed_forward(norm(x))
    logits = head(norm(x))

In the last block only the wanted tokens' x matters, once keys and values of all are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm.kernels.ops.contracts import Activation, AttentionParams, HeadNorms, HeadShape, KernelSet
from lightllm.kvcache.pool import KvLayout, KvPool
from lightllm.layers.rotary import RopeConfig, RotaryAngles
from lightllm.quant.scheme import PlainWeights, WeightScheme
from lightllm.quant.weights import WeightSource


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What a decoder-only model is, in numbers. `windows` has a sliding window, or None, for each layer."""

    hidden_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: RopeConfig
    activation: Activation = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    head_norms: bool = False
    tied_head: bool = False
    windows: tuple[int | None, ...] = ()

    @property
    def head_shape(self) -> HeadShape:
        return HeadShape(self.num_q_heads, self.num_kv_heads, self.head_dim, self.rope.rotary_dim)

    @property
    def layer_params(self) -> int:
        """Weights of a layer's matrix products."""
        attention = 2 * self.hidden_size * (self.num_q_heads + self.num_kv_heads) * self.head_dim
        return attention + 3 * self.hidden_size * self.ffn_size

    @property
    def block_params(self) -> int:
        """The same of all layers."""
        return self.num_layers * self.layer_params

    @property
    def head_params(self) -> int:
        """Weights of the head, which may be the embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def longest_context(self) -> int:
        """Positions the model is made for, stretched by its rope scaling."""
        return max(self.max_position, self.rope.stretched_positions)

    def kv_layout(self, dtype: torch.dtype) -> KvLayout:
        return KvLayout(self.num_layers, self.num_kv_heads, self.head_dim, dtype)

    @property
    def shareable_len(self) -> int | None:
        """Positions from here on have KV that depends on more than the tokens; None if there are none such."""
        return self.rope.max_position if self.rope.length_dependent else None


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step on the device: T tokens, of which those at `wanted` [N] need logits (None: all).

    `attention_plan` is for all tokens. `wanted_plan` is for the wanted ones alone (those at the end may be left out, if
    nothing is read of them): with it the last block computes of other tokens no more than keys and values.
    `rope_lens` [T] is the sequence length each token counts as computed at (for length-dependent rotary schemes).
    """

    token_ids: Tensor
    positions: Tensor
    rope_lens: Tensor
    slots: Tensor
    wanted: Tensor | None
    attention_plan: object
    wanted_plan: object | None = None


class DecoderBlock:
    """One layer's weights and the ops on them."""

    def __init__(self, spec: DecoderSpec, layer: int, source: WeightSource, scheme: WeightScheme) -> None:
        prefix = f"model.layers.{layer}"
        q_size, kv_size = spec.num_q_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        hidden, ffn = spec.hidden_size, spec.ffn_size
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        self.input_norm = source.take(f"{prefix}.input_layernorm.weight", (hidden,))
        qkv = ((f"{attention}.q_proj", q_size), (f"{attention}.k_proj", kv_size), (f"{attention}.v_proj", kv_size))
        self.qkv = scheme.linear(source, qkv, hidden, spec.qkv_bias)
        self.head_norms = _take_head_norms(spec, attention, source) if spec.head_norms else None
        self.output = scheme.linear(source, ((f"{attention}.o_proj", hidden),), q_size, spec.output_bias)
        self.ffn_norm = source.take(f"{prefix}.post_attention_layernorm.weight", (hidden,))
        gate_up = ((f"{mlp}.gate_proj", ffn), (f"{mlp}.up_proj", ffn))
        self.gate_up = scheme.linear(source, gate_up, hidden, spec.ffn_bias)
        self.down = scheme.linear(source, ((f"{mlp}.down_proj", hidden),), ffn, spec.ffn_bias)
        window = spec.windows[layer] if spec.windows else None
        self.attention = AttentionParams(scale=spec.head_dim**-0.5, window=window)


class Decoder:
    """A causal language model over the token-level KV pool."""

    def __init__(
        self, spec: DecoderSpec, source: WeightSource, kernels: KernelSet, max_len: int, device: torch.device
    ) -> None:
        self.spec = spec
        self._head_shape = spec.head_shape
        self._kernels = kernels
        scheme = PlainWeights(kernels)
        self._embedding = source.take("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
        self._blocks = [DecoderBlock(spec, layer, source, scheme) for layer in range(spec.num_layers)]
        self._norm = source.take("model.norm.weight", (spec.hidden_size,))
        self._head = kernels.pack_linear(self._head_weight(source), None)
        self._angles = RotaryAngles(spec.rope, max_len, device)

    def forward(self, batch: ForwardBatch, pool: KvPool) -> Tensor:
        """Compute a step: write its keys and values into the pool, return the hidden states wanted [N, H]."""
        kernels, eps = self._kernels, self.spec.norm_eps
        cos, sin = self._angles(batch.positions, batch.rope_lens)
        residual = kernels.embed(batch.token_ids, self._embedding)  # [tokens, H]
        for layer, block in enumerate(self._blocks):
            wanted = batch.wanted if layer == len(self._blocks) - 1 else None
            x = kernels.rms_norm(residual, block.input_norm, eps)
            x = self._attend(x, cos, sin, block, batch, pool.keys[layer], pool.values[layer], wanted)
            residual = residual if wanted is None else residual.index_select(0, wanted)
            block.output.add(x, residual)
            x = kernels.rms_norm(residual, block.ffn_norm, eps)
            block.down.add(block.gate_up.gated(x, self.spec.activation), residual)
        return kernels.rms_norm(residual, self._norm, eps)

    def _head_weight(self, source: WeightSource) -> Tensor:
        """The head [vocab, H]: the embedding if both are tied, unless the checkpoint has a head that differs."""
        if self.spec.tied_head and not source.has("lm_head.weight"):
            return self._embedding
        head = source.take("lm_head.weight", self._embedding.shape)
        return self._embedding if self.spec.tied_head and torch.equal(head, self._embedding) else head

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, H] -> [N, vocab]."""
        return self._head(hidden)

    def _attend(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        block: DecoderBlock,
        batch: ForwardBatch,
        keys: Tensor,
        values: Tensor,
        wanted: Tensor | None,
    ) -> Tensor:
        """A block's attention over its normed input [T, H]: [T, Hq D], or [N, Hq D] of the wanted tokens."""
        qkv, attention = block.qkv(x), self._kernels.attention
        q = self._kernels.rotary_store(qkv, self._head_shape, cos, sin, block.head_norms, keys, values, batch.slots)
        if wanted is not None and batch.wanted_plan is not None:
            q = q.index_select(0, wanted)
            return attention.run(q, keys, values, batch.wanted_plan, block.attention).flatten(1)
        attended = attention.run(q, keys, values, batch.attention_plan, block.attention).flatten(1)
        return attended if wanted is None else attended.index_select(0, wanted)


def _take_head_norms(spec: DecoderSpec, prefix: str, source: WeightSource) -> HeadNorms:
    q, k = (source.take(f"{prefix}.{name}_norm.weight", (spec.head_dim,)) for name in ("q", "k"))
    return HeadNorms(q, k, spec.norm_eps)
