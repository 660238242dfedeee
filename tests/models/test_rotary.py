"""Rotary angles. What they are for each scaling is held against Transformers in test_against_transformers.py."""

from __future__ import annotations

import pytest
import torch

from lightllm.layers.rotary import RopeConfig, RotaryAngles


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype_of_torch_does_not_matter(dtype: torch.dtype) -> None:
    """It belongs to who uses the library; as float16 the base of Llama 3 would be infinite."""
    config = RopeConfig("default", 500_000.0, 128, 8192, {})
    positions = torch.tensor([0, 1, 77, 8000])

    def angles() -> tuple[torch.Tensor, torch.Tensor]:
        return RotaryAngles(config, 8192, torch.device("cpu"))(positions, positions + 1)

    expected = angles()
    torch.set_default_dtype(dtype)
    try:
        found = angles()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
