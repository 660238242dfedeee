# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""The first and last kernels of a step: fetch its inputs, note where each token's KV goes, read the token's id, fetch
its embedding; send what the host waits for.

Few bytes but for long prompts, where the embedding reads and writes H e bytes a token: bound by launch latency.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tlx

from lightllm.kernels.triton.launch import launcher_for, next_power_of_2

_BLOCK = 128
_MOVED = 1024


@triton.jit(do_not_specialize=["count"])
def _place_tokens_kernel(
    history,
    table,
    rows,
    positions,
    slots,
    ids,
    history_stride,
    table_stride,
    count,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < count
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    row = tl.load(rows + token, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions + token, mask=inside, other=0)
    slot = tl.load(slots + token, mask=inside, other=0)
    tl.store(table + row * table_stride + position, slot.to(tl.int32), mask=inside)
    tl.store(ids + token, tl.load(history + row * history_stride + position, mask=inside, other=0), mask=inside)


def place_tokens(history: Tensor, table: Tensor, rows: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
    """As `PlaceTokens`."""
    count = len(rows)
    ids = torch.empty(count, dtype=torch.int32, device=history.device)
    if count:
        assert history.stride(1) == table.stride(1) == 1
        _place_tokens_kernel[(triton.cdiv(count, _BLOCK),)](
            history,
            table,
            rows,
            positions,
            slots,
            ids,
            history.stride(0),
            table.stride(0),
            count,
            BLOCK=_BLOCK,
            num_warps=1,
            **launcher_for(history.device).options,
        )
    return ids


@triton.jit
def _embed_kernel(ids, weight, out, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    if PDL:
        tlx.gdc_launch_dependents()
        tlx.gdc_wait()
    row = tl.load(ids + token).to(tl.int64)
    value = tl.load(weight + row * size + column, mask=inside & (row >= 0), other=0.0)
    tl.store(out + token * size + column, value, mask=inside)


def embed(ids: Tensor, weight: Tensor) -> Tensor:
    """As `Embed`."""
    count, size = len(ids), weight.shape[1]
    out = torch.empty(count, size, dtype=weight.dtype, device=weight.device)
    if count:
        assert weight.is_contiguous()
        block = next_power_of_2(size)
        warps = min(16, max(1, block // 512))
        _embed_kernel[(count,)](
            ids, weight, out, size, BLOCK=block, num_warps=warps, **launcher_for(ids.device).options
        )
    return out


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["source", "target"])
def _move_kernel(source, target, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + index, tl.load(source + index, mask=index < count), mask=index < count)


def move(source: Tensor, target: Tensor) -> None:
    """As `Move`. A copy by the device's copy engines makes its neighbours wait for about 10 us on either side; a kernel
    that reads or writes the host's memory itself does not."""
    words = source.view(-1).view(torch.int32)
    if len(words):
        _move_kernel[(triton.cdiv(len(words), _MOVED),)](
            words, target.view(-1).view(torch.int32), len(words), BLOCK=_MOVED, num_warps=4
        )
