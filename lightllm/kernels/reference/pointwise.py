"""Normalisation, rotation, KV store and gated activations in plain torch.

All are bound by memory traffic; on a CPU the matrix products around them take nearly all the time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightllm.kernels.ops.contracts import NO_TOKEN, Activation, HeadNorms, HeadShape


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


def move(source: Tensor, target: Tensor) -> None:
    target.view(-1).view(torch.uint8).copy_(source.view(-1).view(torch.uint8), non_blocking=True)


def rotary_store(
    qkv: Tensor,
    shape: HeadShape,
    cos: Tensor,
    sin: Tensor,
    norms: HeadNorms | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    num_tokens = qkv.shape[0]
    heads = qkv.view(num_tokens, shape.num_q_heads + 2 * shape.num_kv_heads, shape.head_dim)
    q, k, v = heads.split([shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
    if norms is not None:
        q = rms_norm(q, norms.q_weight, norms.eps)
        k = rms_norm(k, norms.k_weight, norms.eps)
    q = rotate(q, cos, sin, shape)
    slots = slots.long()
    k_cache.index_copy_(0, slots, rotate(k, cos, sin, shape).to(k_cache.dtype))
    v_cache.index_copy_(0, slots, v.to(v_cache.dtype))
    return q


def rotate(x: Tensor, cos: Tensor, sin: Tensor, shape: HeadShape) -> Tensor:
    """Rotary embedding (RoFormer, arXiv 2104.09864, section 3.4) of x [T, heads, D] by cos, sin [T, R/2]."""
    if shape.rotary_dim == 0:
        return x
    turned, passed = x[..., : shape.rotary_dim], x[..., shape.rotary_dim :]
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)  # [tokens, 1, R/2]
    if shape.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(pair, dim=-1).flatten(-2) if shape.interleaved else torch.cat(pair, dim=-1)
    return torch.cat([turned, passed], dim=-1) if shape.rotary_dim < shape.head_dim else turned


def gated_activation(gate_up: Tensor, kind: Activation) -> Tensor:
    """gate_up [T, 2 F] -> activation(gate) * up [T, F], gate being the first half."""
    gate, up = gate_up.chunk(2, dim=-1)
    match kind:
        case "silu":
            return functional.silu(gate) * up
        case "gelu":
            return functional.gelu(gate) * up
        case "gelu_tanh":
            return functional.gelu(gate, approximate="tanh") * up


def place_tokens(history: Tensor, table: Tensor, rows: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
    rows, positions = rows.long(), positions.long()
    table[rows, positions] = slots.to(table.dtype)
    return history[rows, positions]


def embed(ids: Tensor, weight: Tensor) -> Tensor:
    return functional.embedding(ids.clamp(min=0), weight).masked_fill_((ids == NO_TOKEN)[:, None], 0)
