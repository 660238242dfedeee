# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Asking for memory before a kernel may read it: only a hint, so it may run above `gdc_wait` (see `launch`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def prefetch(address, size):
    """Ask for `size` bytes (a multiple of 16) from each address (likewise) to be brought into the L2 cache: Hopper's
    bulk prefetch, which returns at once."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [address.to(tl.uint64), tl.zeros(address.shape, tl.int32) + size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
