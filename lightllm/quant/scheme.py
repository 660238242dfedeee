"""The seam for weight formats: how linear layers are stored, loaded and applied.

Plain weights are the first scheme: taken as they are, stacked where layers are fused, packed by the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightllm.kernels.ops.contracts import KernelSet, LinearOp
from lightllm.quant.weights import WeightSource


class WeightScheme(Protocol):
    def linear(self, source: WeightSource, parts: Sequence[tuple[str, int]], in_dim: int, bias: bool) -> LinearOp:
        """One op x [T, in_dim] -> [T, sum of outs] from parts (name, out), stacked in order along the output.

        Reads `<name>.weight` [out, in_dim] and, if `bias`, `<name>.bias` [out].
        """
        ...


class PlainWeights:
    """Unquantized weights."""

    def __init__(self, kernels: KernelSet) -> None:
        self._kernels = kernels

    def linear(self, source: WeightSource, parts: Sequence[tuple[str, int]], in_dim: int, bias: bool) -> LinearOp:
        weight = source.take_stacked([(f"{name}.weight", (out, in_dim)) for name, out in parts])
        bias_parts = [(f"{name}.bias", (out,)) for name, out in parts]
        return self._kernels.pack_linear(weight, source.take_stacked(bias_parts) if bias else None)
