"""A weight and the ways to multiply with it: cuBLAS, or a Triton kernel where that was measured to be faster.

Beside the plain product there are the products a decoder block is made of, each in as few kernels as its number of
tokens allows: normalised input, activated gate times up, addition to the residual.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightllm.kernels.ops.contracts import Activation
from lightllm.kernels.triton.activation import gated_activation
from lightllm.kernels.triton.launch import launcher_for, next_power_of_2
from lightllm.kernels.triton.linear import tile_kernel, vector_kernel
from lightllm.kernels.triton.linear_choice import Choices, Tile, Vector, choices_for
from lightllm.kernels.triton.norm import rms_norm

MOST_PARTIAL_BYTES = 32 << 20


class SplitWorkspace:
    """Where the parts of a split product meet; shared by all products of a device, since they run one by one."""

    def __init__(self, device: torch.device) -> None:
        self.partials = torch.empty(MOST_PARTIAL_BYTES // 4, dtype=torch.float32, device=device)
        self.counters = torch.zeros(1 << 14, dtype=torch.int32, device=device)


class LinearPacker:
    """Makes the products of one engine: `packer(weight, bias)` is `KernelSet.pack_linear`."""

    def __init__(self, device: torch.device, device_name: str) -> None:
        self._name = device_name
        self._workspace = SplitWorkspace(device)

    def __call__(self, weight: Tensor, bias: Tensor | None) -> TritonLinear:
        choices = choices_for(weight.shape[0], weight.shape[1], weight.dtype, self._name)
        return TritonLinear(weight.contiguous(), bias, choices, self._workspace)


class TritonLinear:
    """weight [N, K], bias [N] or None; `op(x [T, K])` is x @ weight.T + bias [T, N]."""

    __slots__ = ("_choices", "_workspace", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, choices: Choices, workspace: SplitWorkspace) -> None:
        self.weight, self.bias = weight, bias
        self._choices, self._workspace = choices, workspace

    def __call__(self, x: Tensor) -> Tensor:
        choice = self._choices.at(x.shape[0])
        if choice is None or not x.shape[0]:
            return functional.linear(x, self.weight, self.bias)
        out = x.new_empty(x.shape[0], self.weight.shape[0])
        return self._multiply(x, out, choice)

    def add_into(self, x: Tensor, residual: Tensor) -> None:
        """residual [T, N] += op(x), in place."""
        choice = self._choices.at(x.shape[0])
        if choice is not None and x.shape[0]:
            self._multiply(x, residual, choice, add=True)
            return
        torch.addmm(residual, x, self.weight.t(), out=residual)
        if self.bias is not None:
            residual += self.bias

    def normed(self, x: Tensor, norm_weight: Tensor, eps: float) -> Tensor:
        """op(rms_norm(x))."""
        choice = self._choices.at(x.shape[0])
        if not isinstance(choice, Vector):
            return self(rms_norm(x, norm_weight, eps))
        return self._multiply(x, x.new_empty(x.shape[0], self.weight.shape[0]), choice, norm=(norm_weight, eps))

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """activation(gate) * up [T, N/2] of op(x) = [gate, up]."""
        choice = self._choices.at(x.shape[0])
        if choice is None or not x.shape[0]:
            return gated_activation(functional.linear(x, self.weight, self.bias), kind)
        return self._multiply(x, x.new_empty(x.shape[0], self.weight.shape[0] // 2), choice, kind=kind)

    def normed_gated(self, x: Tensor, norm_weight: Tensor, eps: float, kind: Activation) -> Tensor:
        """gated(rms_norm(x))."""
        choice = self._choices.at(x.shape[0])
        if not isinstance(choice, Vector):
            return self.gated(rms_norm(x, norm_weight, eps), kind)
        out = x.new_empty(x.shape[0], self.weight.shape[0] // 2)
        return self._multiply(x, out, choice, norm=(norm_weight, eps), kind=kind)

    def _multiply(
        self,
        x: Tensor,
        out: Tensor,
        choice: Vector | Tile,
        norm: tuple[Tensor, float] | None = None,
        kind: Activation | None = None,
        add: bool = False,
    ) -> Tensor:
        assert x.stride(1) == 1 and out.stride(1) == 1
        if isinstance(choice, Vector):
            return multiply_vector(x, self.weight, self.bias, out, choice, norm, kind, add)
        assert norm is None
        return multiply_tile(x, self.weight, self.bias, out, choice, self._workspace, kind, add)


def multiply_vector(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    choice: Vector,
    norm: tuple[Tensor, float] | None = None,
    kind: Activation | None = None,
    add: bool = False,
) -> Tensor:
    """Write (or add) the product into out; a number of tokens that is no power of two takes several launches."""
    launcher = launcher_for(x.device)
    num_rows = weight.shape[0] if kind is None else weight.shape[0] // 2
    rows = min(choice.rows, next_power_of_2(num_rows))
    if kind is not None:
        rows = max(1, rows // 2)  # each program streams two blocks of the weight
    aligned = weight.shape[1] % 8 == 0 and weight.data_ptr() % 16 == 0 and weight.element_size() == 2
    done = 0
    while done < x.shape[0]:
        count = 1 << ((x.shape[0] - done).bit_length() - 1)
        vector_kernel[(-(-num_rows // rows),)](
            x[done:],
            weight,
            weight if bias is None else bias,
            weight if norm is None else norm[0],
            out[done:],
            x.stride(0),
            out.stride(0),
            num_rows,
            weight.shape[1],
            0.0 if norm is None else norm[1],
            M=count,
            ROWS=rows,
            BLOCK_K=choice.block_k,
            AHEAD=choice.ahead if aligned else 0,
            HAS_BIAS=bias is not None,
            NORM=norm is not None,
            GATED=kind or "",
            ADD=add,
            num_warps=choice.num_warps,
            **launcher.options,
        )
        done += count
    return out


def multiply_tile(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    choice: Tile,
    workspace: SplitWorkspace,
    kind: Activation | None = None,
    add: bool = False,
) -> Tensor:
    """Write (or add) the product into out; x has at most 64 rows."""
    num_tokens = x.shape[0]
    block_m = max(16, next_power_of_2(num_tokens))
    num_rows = weight.shape[0] if kind is None else weight.shape[0] // 2
    blocks = -(-num_rows // choice.block_n)
    area = block_m * choice.block_n * (1 if kind is None else 2)
    split = choice.split
    if blocks > workspace.counters.numel() or blocks * split * area > workspace.partials.numel():
        split = 1
    tile_kernel[(blocks, split)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        workspace.partials,
        workspace.counters,
        num_tokens,
        x.stride(0),
        out.stride(0),
        num_rows,
        weight.shape[1],
        BLOCK_M=block_m,
        BLOCK_N=choice.block_n,
        BLOCK_K=choice.block_k,
        SPLIT=split,
        EVEN=weight.shape[1] % choice.block_k == 0,
        PREFETCH=weight.shape[1] % 8 == 0 and weight.data_ptr() % 16 == 0 and weight.element_size() == 2,
        HAS_BIAS=bias is not None,
        GATED=kind or "",
        ADD=add,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_stages=choice.num_stages,
        num_warps=choice.num_warps,
        **launcher_for(x.device).options,
    )
    return out
