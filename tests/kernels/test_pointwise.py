"""Norms, rotation with store, and gated activations against the torch references."""

from __future__ import annotations

import pytest
import torch

from lightllm.kernels.ops.contracts import NO_TOKEN, HeadNorms, HeadShape
from lightllm.kernels.reference import pointwise as reference
from lightllm.kernels.triton import activation, norm, rotary, tokens

SIZES = [(0, 64), (1, 1), (1, 64), (3, 97), (5, 513), (2, 1025)]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Two roundings of the result in this dtype."""
    bound = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}[dtype]
    return {"rtol": bound, "atol": bound}


def random(*size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*size, device=device).to(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_gives_what_the_reference_gives(size, device, dtype):
    x, weight = random(*size, device=device, dtype=dtype), random(size[1], device=device, dtype=dtype)
    torch.testing.assert_close(norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **tolerance(dtype))


def test_rms_norm_takes_strided_rows(device):
    x = torch.randn(6, 3, 32, device=device)
    weight = torch.randn(32, device=device)
    torch.testing.assert_close(norm.rms_norm(x[:, 1], weight, 1e-5), reference.rms_norm(x[:, 1], weight, 1e-5))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("size", [(0, 64), (1, 2), (3, 194), (2, 2050)])
def test_gated_activation_gives_what_the_reference_gives(kind, size, device, dtype):
    gate_up = random(*size, device=device, dtype=dtype)
    expected = reference.gated_activation(gate_up.float(), kind).to(dtype)
    torch.testing.assert_close(activation.gated_activation(gate_up, kind), expected, **tolerance(dtype))


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(
    "shape",
    [
        HeadShape(4, 2, 32, 32),
        HeadShape(3, 1, 24, 24),
        HeadShape(4, 4, 32, 8),
        HeadShape(2, 1, 16, 16, interleaved=True),
        HeadShape(7, 1, 24, 16, interleaved=True),
        HeadShape(6, 3, 16, 0),
    ],
    ids=lambda s: f"{s.num_q_heads}q{s.num_kv_heads}kv{s.head_dim}d{s.rotary_dim}r{'i' if s.interleaved else ''}",
)
@pytest.mark.parametrize("num_tokens", [0, 1, 13])
def test_rotary_store_gives_what_the_reference_gives(num_tokens, shape, normed, device, dtype):
    heads = shape.num_q_heads + 2 * shape.num_kv_heads
    qkv = random(num_tokens, heads * shape.head_dim, device=device, dtype=dtype)
    angles = torch.randn(num_tokens, shape.rotary_dim // 2, device=device)
    norms = None
    if normed:
        weights = (random(shape.head_dim, device=device, dtype=dtype) for _ in range(2))
        norms = HeadNorms(*weights, 1e-6)
    slots = torch.randperm(40, device=device)[:num_tokens]
    expected_caches = [torch.zeros(41, shape.num_kv_heads, shape.head_dim, device=device, dtype=dtype) for _ in "kv"]
    actual_caches = [cache.clone() for cache in expected_caches]
    cos, sin = angles.cos(), angles.sin()
    expected = reference.rotary_store(qkv, shape, cos, sin, norms, *expected_caches, slots)
    actual = rotary.rotary_store(qkv, shape, cos, sin, norms, *actual_caches, slots)
    loose = {"rtol": 2 * tolerance(dtype)["rtol"], "atol": 3 * tolerance(dtype)["atol"]}
    torch.testing.assert_close(actual, expected, **loose)
    torch.testing.assert_close(actual_caches, expected_caches, **loose)


def test_rotary_store_with_many_tokens_uses_larger_programs(device):
    shape = HeadShape(4, 2, 16, 16)
    qkv, angles = torch.randn(67, 8 * 16, device=device), torch.randn(67, 8, device=device)
    slots = torch.randperm(80, device=device)[:67]
    caches = [torch.zeros(81, 2, 16, device=device) for _ in range(4)]
    expected = reference.rotary_store(qkv, shape, angles.cos(), angles.sin(), None, *caches[:2], slots)
    actual = rotary.rotary_store(qkv, shape, angles.cos(), angles.sin(), None, *caches[2:], slots)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(caches[2:], caches[:2])


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 128, 129])
def test_tokens_are_placed_and_read(count, index_dtype, device):
    history = torch.randint(0, 1000, (5, 70), dtype=torch.int32, device=device)
    tables = [torch.zeros(5, 70, dtype=torch.int32, device=device) for _ in range(2)]
    places = torch.randperm(5 * 70, device=device)[:count]
    indices = [(places // 70).to(index_dtype), (places % 70).to(index_dtype), torch.arange(count, device=device) + 7]
    expected = reference.place_tokens(history, tables[0], *indices)
    torch.testing.assert_close(tokens.place_tokens(history, tables[1], *indices), expected, rtol=0, atol=0)
    torch.testing.assert_close(tables[1], tables[0], rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_embeddings_are_fetched(size, device, dtype):
    weight = random(11, size[1], device=device, dtype=dtype)
    ids = torch.randint(0, 11, (size[0],), dtype=torch.int32, device=device)
    ids[::3] = NO_TOKEN
    found = tokens.embed(ids, weight)
    torch.testing.assert_close(found, reference.embed(ids, weight), rtol=0, atol=0)
    assert not found[::3].any()


@pytest.mark.parametrize("size", [(0,), (1,), (1023,), (1025,), (3, 1024)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_moves_copy_bytes(size, dtype, device):
    source = torch.randint(-(2**31), 2**31, size, device=device).to(dtype)
    for pinned in (False, True) if device.type == "cuda" else (False,):
        host = source.cpu().pin_memory() if pinned else source
        target = torch.zeros_like(source)
        back = torch.zeros_like(host, pin_memory=pinned)
        tokens.move(host, target)
        tokens.move(target, back)
        if device.type == "cuda":
            torch.cuda.synchronize()
        expected = torch.zeros_like(source)
        reference.move(host, expected)
        torch.testing.assert_close(target, expected, rtol=0, atol=0)
        torch.testing.assert_close(target, source, rtol=0, atol=0)
        torch.testing.assert_close(back.cpu(), source.cpu(), rtol=0, atol=0)


def test_moves_take_what_begins_anywhere(device):
    source, target = (
        torch.arange(40, dtype=torch.int32, device=device),
        torch.zeros(40, dtype=torch.int32, device=device),
    )
    tokens.move(source[3:20], target[5:22])
    assert target.tolist() == [0] * 5 + list(range(3, 20)) + [0] * 18
