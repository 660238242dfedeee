"""The CPU backend's products: rows are padded to few sizes, and nobody sees it."""

from __future__ import annotations

import pytest
import torch

from lightllm.kernels.reference.linear import pack_linear, padded


def test_few_numbers_of_rows_are_ever_computed() -> None:
    assert all(padded(count) == count for count in range(17))
    assert all(0 <= padded(count) - count <= count / 8 for count in range(17, 5000))
    assert len({padded(count) for count in range(1, 513)}) < 60


@pytest.mark.parametrize("count", [0, 1, 16, 17, 33, 100, 257])
@pytest.mark.parametrize("biased", [False, True])
def test_padding_is_not_seen(count: int, biased: bool) -> None:
    weight, bias = torch.randn(48, 32), torch.randn(48) if biased else None
    x = torch.randn(count, 32)
    op = pack_linear(weight, bias)
    torch.testing.assert_close(op(x), torch.nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert op.gated(x, "silu").shape == (count, 24)
    residual = torch.randn(count, 48)
    expected = residual + op(x)
    op.add(x, residual)
    torch.testing.assert_close(residual, expected)
