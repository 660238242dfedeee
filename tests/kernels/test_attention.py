"""Token-level attention against the torch reference: every mixture of decodes and chunks, every parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hopper_machine import machine_for

from lightllm.kernels.ops.contracts import AttentionParams, HeadShape, SequenceLayout
from lightllm.kernels.reference.attention import TorchAttention
from lightllm.kernels.triton import attention_backend, launch
from lightllm.kernels.triton.attention_backend import TritonAttention
from lightllm.kernels.triton.attention_plan import ITEM_SIZE, KEY_END, KEY_START

STEPS = {
    "one token": ([0], [1]),
    "a decode": ([70], [1]),
    "decodes": ([0, 63, 64, 130], [1, 1, 1, 1]),
    "a prompt": ([0], [67]),
    "a chunk after a prefix": ([33], [29]),
    "a verified draft": ([90, 40], [4, 3]),
    "a long decode": ([1500], [1]),
    "long and short": ([1200, 3, 900], [2, 1, 1]),
    "mixed": ([128, 0, 5, 64], [1, 41, 1, 17]),
}
SHAPES = [HeadShape(4, 2, 32, 32), HeadShape(3, 3, 16, 16), HeadShape(7, 1, 24, 24)]
PARAMS = ["plain", "scale", "window", "cap", "alibi", "all"]


def make_params(kind: str, shape: HeadShape, device: torch.device) -> AttentionParams:
    slopes = torch.rand(shape.num_q_heads, device=device)
    scale = 0.3 if kind in ("scale", "all") else shape.head_dim**-0.5
    return AttentionParams(
        scale=scale,
        window=24 if kind in ("window", "all") else None,
        soft_cap=1.5 if kind in ("cap", "all") else None,
        alibi_slopes=slopes if kind in ("alibi", "all") else None,
    )


def make_step(starts: list[int], lens: list[int], shape: HeadShape, device: torch.device, dtype: torch.dtype):
    """A layout with shuffled rows and slots, and q, k_cache, v_cache, table."""
    num_sequences, longest = len(starts), max(np.add(starts, lens))
    rows = np.random.default_rng(0).permutation(num_sequences + 2)[:num_sequences]
    layout = SequenceLayout(*(np.array(a, np.int32) for a in (rows, starts, lens)))
    total = (num_sequences + 2) * longest
    table = torch.randperm(total, device=device).view(num_sequences + 2, longest).to(torch.int32)
    caches = [torch.randn(total + 1, shape.num_kv_heads, shape.head_dim, device=device).to(dtype) for _ in "kv"]
    q = torch.randn(sum(lens), shape.num_q_heads, shape.head_dim, device=device).to(dtype)
    return layout, q, *caches, table


def expected_output(layout, q, k_cache, v_cache, table, params):
    """The reference in float32, on the CPU."""
    backend = TorchAttention()
    slopes = None if params.alibi_slopes is None else params.alibi_slopes.cpu()
    params = AttentionParams(params.scale, params.window, params.soft_cap, slopes)
    plan = backend.plan(layout, table.cpu())
    return backend.run(q.cpu().float(), k_cache.cpu().float(), v_cache.cpu().float(), plan, params)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    bound = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[actual.dtype]
    torch.testing.assert_close(actual.float().cpu(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("step", STEPS)
def test_attention_gives_what_the_reference_gives(step, kind, device, dtype):
    if device.type == "cpu" and dtype == torch.float16 and kind != "plain":
        pytest.skip("float16 differs in rounding only")
    shape = SHAPES[(PARAMS.index(kind) + list(STEPS).index(step)) % len(SHAPES)]
    params = make_params(kind, shape, device)
    layout, q, k_cache, v_cache, table = make_step(*STEPS[step], shape, device, dtype)
    backend = TritonAttention(shape, device)
    actual = backend.run(q, k_cache, v_cache, backend.plan(layout, table), params)
    assert_same(actual, expected_output(layout, q, k_cache, v_cache, table, params))


def test_an_int32_addresses_as_many_elements_as_it_counts():
    most = 2**31 // 1024
    assert not attention_backend.is_wide(torch.empty(most - 1, 8, 128, device="meta"))
    assert attention_backend.is_wide(torch.empty(most, 8, 128, device="meta"))


def test_pools_beyond_an_int32_are_addressed_wide(monkeypatch, device):
    """As for a cache of more than 2 ** 31 elements, which is too large for a test."""
    monkeypatch.setattr(attention_backend, "MOST_NARROW", 0)
    shape, params = SHAPES[0], AttentionParams(scale=0.3)
    layout, q, k_cache, v_cache, table = make_step(*STEPS["mixed"], shape, device, torch.float32)
    backend = TritonAttention(shape, device)
    actual = backend.run(q, k_cache, v_cache, backend.plan(layout, table), params)
    assert_same(actual, expected_output(layout, q, k_cache, v_cache, table, params))


@pytest.mark.parametrize(
    "step", [([0], [1024]), ([5000] * 64, [1] * 64), ([700, 9] * 32, [31, 1] * 32)], ids=["prompt", "decodes", "chunks"]
)
def test_reserved_scratch_has_room_for_split_tiles_and_hardly_more(step):
    shape, cpu = HeadShape(4, 4, 64, 64), torch.device("cpu")
    backend = TritonAttention(shape, cpu)
    backend.reserve(64, 1024)
    reserved = backend._scratch
    most_tiles = 64 + 1024 // 128
    assert len(reserved.weights) <= most_tiles // 2 * 128 * shape.num_kv_heads, "half of the tiles in two parts each"
    layout = SequenceLayout(*(np.array(values, np.int32) for values in (range(len(step[0])), *step)))
    plan = backend.plan(layout, torch.zeros(64, 9000, dtype=torch.int32))
    assert all(launch.scratch is reserved for launch in plan.launches), "a step took memory that was not measured"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what merges parts is compiled here, not interpreted")
@pytest.mark.parametrize(
    "shape", [HeadShape(8, 2, 128, 128), HeadShape(2, 2, 64, 64), HeadShape(7, 1, 128, 128)], ids=str
)
@pytest.mark.parametrize(
    "step", [([0], [300]), ([70, 0, 500], [129, 40, 140]), ([1500], [70]), ([9, 126], [150, 1])], ids=str
)
def test_large_tiles_on_a_machine_of_tests(step, shape, monkeypatch):
    """The kernel for Hopper, with whatever runs at the same time in any order."""
    from lightllm.kernels.triton import attention_hopper

    monkeypatch.setattr(launch, "_INTERPRETED", launch.Launcher(3, 227 << 10, dependent=False, hopper=True))
    torch.manual_seed(0)
    device = torch.device("cpu")
    layout, q, k_cache, v_cache, table = make_step(*step, shape, device, torch.float16)
    params = make_params("scale", shape, device)
    backend = TritonAttention(shape, device)
    with machine_for(attention_hopper, "attention_hopper_kernel", seed=sum(step[1])) as machine:
        actual = backend.run(q, k_cache, v_cache, backend.plan(layout, table), params)
        assert machine.num_programs > 1
    assert_same(actual, expected_output(layout, q, k_cache, v_cache, table, params))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "shape", [HeadShape(8, 2, 128, 128), HeadShape(2, 2, 64, 64), HeadShape(14, 2, 128, 128)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize(
    "step",
    [([0], [2048]), ([0, 700, 5000, 1], [129, 1000, 128, 33]), ([9000], [64]), ([0, 5, 0], [1, 300, 5000])],
    ids=str,
)
def test_large_tiles_on_the_gpu(step, dtype, shape):
    device = torch.device("cuda")
    layout, q, k_cache, v_cache, table = make_step(*step, shape, device, dtype)
    params = make_params("scale", shape, device)
    backend = TritonAttention(shape, device)
    actual = backend.run(q, k_cache, v_cache, backend.plan(layout, table), params)
    assert_same(actual, expected_output(layout, q, k_cache, v_cache, table, params))
    for _ in range(3):  # a race would differ between runs
        assert torch.equal(backend.run(q, k_cache, v_cache, backend.plan(layout, table), params), actual)


def test_long_sequences_are_computed_in_parts(device):
    shape = SHAPES[0]
    layout, _, _, _, table = make_step(*STEPS["a long decode"], shape, device, torch.float32)
    (launch,) = TritonAttention(shape, device).plan(layout, table).launches
    assert launch.num_merges == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_buffers_serve_step_after_step(shape, device):
    """As a CUDA graph does: the same buffers, first a full step, then a smaller one, then a long one. Padding comes out
    as 0 where there is room for its items."""
    backend = TritonAttention(shape, device)
    params = make_params("plain", shape, device)
    buffers = None
    for starts in ([3, 300, 90], [4, 301, 91], [5, 302, 92], [8], [700, 1]):
        layout, q, k_cache, v_cache, table = make_step(starts, [1] * len(starts), shape, device, torch.float32)
        if buffers is None:
            whole = torch.zeros(5, 1024, dtype=torch.int32, device=device)
            host = np.empty(backend.buffer_size(4, 4), np.int32)
            memory = torch.empty(len(host), dtype=torch.int32, device=device)
            buffers = backend.make_buffers(4, 4, whole, memory)
        whole[: table.shape[0], : table.shape[1]] = table
        backend.plan_into(buffers, layout, host)
        memory.copy_(torch.from_numpy(host))
        padded = torch.cat([q, torch.ones(4 - len(q), *q.shape[1:], device=device)])
        actual = backend.run(padded, k_cache, v_cache, buffers.plan, params)
        assert_same(actual[: len(q)], expected_output(layout, q, k_cache, v_cache, table, params))
        if len(q) == 3:
            assert not actual[3:].any()


@pytest.mark.parametrize("shape", [SHAPES[0], HeadShape(8, 2, 64, 64), HeadShape(4, 2, 128, 128)], ids=str)
def test_buffers_may_hold_chunks_too(shape, device, dtype):
    backend = TritonAttention(shape, device)
    params = make_params("plain", shape, device)
    layout, q, k_cache, v_cache, table = make_step([128, 0, 5, 64], [1, 41, 1, 17], shape, device, dtype)
    host = np.empty(backend.buffer_size(8, 64), np.int32)
    memory = torch.empty(len(host), dtype=torch.int32, device=device)
    buffers = backend.make_buffers(8, 64, table, memory)
    backend.plan_into(buffers, layout, host)
    memory.copy_(torch.from_numpy(host))
    actual = backend.run(q, k_cache, v_cache, buffers.plan, params)
    assert_same(actual, expected_output(layout, q, k_cache, v_cache, table, params))


STAYING = [(32, 8, 128), (14, 2, 128), (200, 200, 64), (71, 1, 64), (1, 1, 128)]
"""Query heads, key/value heads and their size, for which the kernel for Hopper may serve."""


@pytest.mark.parametrize("heads", STAYING, ids=str)
@pytest.mark.parametrize(("sequences", "tokens"), [(1, 1), (4, 4), (64, 64), (8, 64), (32, 320), (256, 4096)])
def test_programs_that_stay_find_every_unit_of_a_step(sequences, tokens, heads, monkeypatch):
    """What the kernel for Hopper reads, column by column up to the first 0, in plans and in buffers used again."""
    shape = HeadShape(*heads, rotary_dim=heads[2])
    monkeypatch.setattr(launch, "_INTERPRETED", launch.Launcher(132, 227 << 10, dependent=True, hopper=True))
    backend = TritonAttention(shape, torch.device("cpu"))
    table = torch.zeros(sequences, 1, dtype=torch.int32)
    memory = torch.zeros(backend.buffer_size(sequences, tokens), dtype=torch.int32)
    buffers = backend.make_buffers(sequences, tokens, table, memory)
    assert sum(len(part.work) for part in buffers.plan.launches) == len(memory)
    host = np.full(len(memory), 77, np.int32)
    rng = np.random.default_rng(sequences)
    for _ in range(12):
        count = rng.integers(1, sequences + 1)
        extra = (
            rng.multinomial(rng.integers(0, tokens - count + 1), np.ones(count) / count) if tokens > sequences else 0
        )
        lens = (np.ones(count) + extra).astype(np.int32)
        starts = rng.integers(0, rng.choice([1, 200, 9000]), count).astype(np.int32)
        layout = SequenceLayout(np.arange(count, dtype=np.int32), starts, lens)
        backend.plan_into(buffers, layout, host)
        memory.copy_(torch.from_numpy(host))
        for part in (*buffers.plan.launches, *backend.plan(layout, table).launches):
            if part.num_programs:
                _assert_units_are_there(part, shape.num_kv_heads)


def _assert_units_are_there(part, num_kv_heads):
    items = part.items.numpy().reshape(-1, ITEM_SIZE)
    laps = -(-part.num_items * num_kv_heads // part.num_programs)
    units = part.units.numpy()[: laps * part.num_programs].reshape(laps, part.num_programs)
    found = np.sort(units[np.logical_and.accumulate(units > 0)]) - 1
    with_keys = np.flatnonzero(items[:, KEY_END] > items[:, KEY_START])
    expected = (with_keys[:, None] * num_kv_heads + np.arange(num_kv_heads)).ravel()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reserved_scratch_is_enough_for_any_step(shape, device):
    backend = TritonAttention(shape, device)
    backend.reserve(12, 3000)
    reserved = backend._scratch
    rng = np.random.default_rng(0)
    for _ in range(60):
        count = rng.integers(1, 13)
        lens = 1 + rng.multinomial(rng.integers(0, 2988), np.ones(count) / count).astype(np.int32)
        starts = rng.integers(0, rng.choice([1, 100, 9000]), len(lens)).astype(np.int32)
        rows = np.arange(len(lens), dtype=np.int32)
        backend.plan(SequenceLayout(rows, starts, lens), torch.zeros(13, 1, dtype=torch.int32, device=device))
    assert backend._scratch is reserved


def test_what_a_masked_key_holds_does_not_matter(device):
    """A slot beyond a sequence may hold anything, NaN included."""
    shape = SHAPES[0]
    layout, q, k_cache, v_cache, table = make_step([9, 30], [1, 5], shape, device, torch.float32)
    params = make_params("plain", shape, device)
    expected = expected_output(layout, q, k_cache, v_cache, table, params)
    used = torch.cat([table[row, :length] for row, length in zip(layout.rows, layout.kv_lens, strict=True)]).long()
    unused = torch.ones(len(k_cache), dtype=torch.bool, device=device)
    unused[used] = False
    k_cache[unused], v_cache[unused] = float("nan"), float("nan")
    backend = TritonAttention(shape, device)
    assert_same(backend.run(q, k_cache, v_cache, backend.plan(layout, table), params), expected)
