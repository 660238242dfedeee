"""Batched greedy decoding of the compact model in float32: what the evaluator uses on a GPU, in bulk.

Prompts of similar length share a batch; the prompt pass is padded on the right (harmless under causal attention), and
each sequence then writes its next key and value at its own length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Attend, Llama

STOP = (2, 0)  # <|im_end|>, <|endoftext|>
TOKENS_PER_BATCH = 200_000
MAX_BATCH = 512


def greedy(model: Llama, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
    """Greedy continuations, ending with a stop token unless cut at its `max_tokens`."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), max_tokens[i]))
    results: list[list[int]] = [[] for _ in prompts]
    start = 0
    while start < len(order):
        end = start + 1
        while (
            end < len(order)
            and end - start < MAX_BATCH
            and (end - start + 1) * len(prompts[order[end]]) <= TOKENS_PER_BATCH
        ):
            end += 1
        chosen = order[start:end]
        for index, tokens in zip(
            chosen, _batch(model, [prompts[i] for i in chosen], [max_tokens[i] for i in chosen]), strict=True
        ):
            results[index] = tokens
        start = end
    return results


class Cache:
    """Keys and values of a batch, [sequences, kv_heads, length, head_dim] per layer."""

    def __init__(self, model: Llama, count: int, length: int) -> None:
        shape, device = model.shape, model.norm.weight.device
        size = (count, shape.num_key_value_heads, length, shape.head_dim)
        self.groups = shape.num_attention_heads // shape.num_key_value_heads
        self.keys = [torch.zeros(size, device=device) for _ in range(shape.num_hidden_layers)]
        self.values = [torch.zeros(size, device=device) for _ in range(shape.num_hidden_layers)]

    def prompt(self, layer: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[layer][:, :, : k.shape[2]] = k
            self.values[layer][:, :, : v.shape[2]] = v
            k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        return attend

    def step(self, layer: int, lengths: Tensor, mask: Tensor) -> Attend:
        rows = torch.arange(len(lengths), device=lengths.device)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[layer][rows, :, lengths] = k[:, :, 0]
            self.values[layer][rows, :, lengths] = v[:, :, 0]
            keys, values = (
                t[layer][:, :, : mask.shape[-1]].repeat_interleave(self.groups, dim=1) for t in (self.keys, self.values)
            )
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return attend


@torch.inference_mode()
def _batch(model: Llama, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
    device, layers = model.norm.weight.device, range(model.shape.num_hidden_layers)
    width, count = max(map(len, prompts)), len(prompts)
    ids = torch.zeros(count, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    cache = Cache(model, count, width + max(max_tokens))
    positions = torch.arange(width, device=device).expand_as(ids)
    hidden = model(ids, positions, [cache.prompt(layer) for layer in layers])
    token = model.logits(hidden[torch.arange(count, device=device), lengths - 1]).argmax(-1)
    made = [token]
    stops = torch.tensor(STOP, device=device)
    done = torch.isin(token, stops)
    for step in range(1, max(max_tokens)):
        if step % 8 == 0 and bool(done.all()):
            break
        span = torch.arange(width + step, device=device)
        mask = (span[None] <= lengths[:, None])[:, None, None]
        attends = [cache.step(layer, lengths, mask) for layer in layers]
        hidden = model(token[:, None], lengths[:, None], attends)
        lengths = lengths + 1
        token = model.logits(hidden[:, 0]).argmax(-1)
        made.append(token)
        done |= torch.isin(token, stops)
    rows = torch.stack(made, dim=1).tolist()
    return [_cut(row[:limit]) for row, limit in zip(rows, max_tokens, strict=True)]


def _cut(tokens: list[int]) -> list[int]:
    for index, token in enumerate(tokens):
        if token in STOP:
            return tokens[: index + 1]
    return tokens
