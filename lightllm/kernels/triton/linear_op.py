"""A weight and how to multiply with it: cuBLAS, or what was measured to be faster: a Triton kernel, or an algorithm of
the library that it would not have chosen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightllm.kernels import cublaslt
from lightllm.kernels.cublaslt import Algorithm
from lightllm.kernels.ops.contracts import Activation
from lightllm.kernels.triton.activation import gated_activation
from lightllm.kernels.triton.launch import launcher_for, next_power_of_2
from lightllm.kernels.triton.linear import tile_kernel, vector_kernel
from lightllm.kernels.triton.linear_choice import Choices, Tile, Vector, choices_for

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
        if isinstance(choice, Algorithm):
            return multiply_by(x, self.weight, self.bias, choice, self._workspace)
        out = x.new_empty(x.shape[0], self.weight.shape[0])
        if isinstance(choice, Vector):
            return multiply_vector(x, self.weight, self.bias, out, choice)
        return multiply_tile(x, self.weight, self.bias, out, choice, self._workspace)

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """activation(gate) * up [T, N/2], where op(x) = [gate, up]; one kernel where one of ours serves."""
        choice = self._choices.at(x.shape[0])
        if not isinstance(choice, Vector | Tile) or not x.shape[0]:
            return gated_activation(self(x), kind)
        out = x.new_empty(x.shape[0], self.weight.shape[0] // 2)
        if isinstance(choice, Vector):
            return multiply_vector(x, self.weight, self.bias, out, choice, kind)
        return multiply_tile(x, self.weight, self.bias, out, choice, self._workspace, kind)


def multiply_by(
    x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm, workspace: SplitWorkspace
) -> Tensor:
    """The product by this algorithm of cuBLASLt; by one of cuBLAS's choice where it does not serve."""
    if bias is not None or not cublaslt.version():
        return functional.linear(x, weight, bias)
    sizes = (x.shape[0], weight.shape[0], weight.shape[1])
    product = cublaslt.cublaslt().product(sizes, weight.dtype, algorithm, workspace.partials.nbytes)
    if product is None:
        return functional.linear(x, weight)
    return product(x.contiguous(), weight, x.new_empty(sizes[:2]), workspace.partials)


def multiply_vector(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    choice: Vector,
    kind: Activation | None = None,
) -> Tensor:
    """Write the product, gated if `kind` is given, into out; the tokens go in launches of 4, 2 and 1."""
    assert x.stride(1) == 1 and out.stride(1) == 1
    launcher = launcher_for(x.device)
    num_rows = weight.shape[0] if kind is None else weight.shape[0] // 2
    halves = 1 if kind is None else 2
    rows = max(halves, min(choice.rows, next_power_of_2(num_rows)))
    done = 0
    while done < x.shape[0]:
        count = 1 << ((x.shape[0] - done).bit_length() - 1)
        vector_kernel[(-(-num_rows * halves // rows),)](
            x[done:],
            weight,
            weight if bias is None else bias,
            out[done:],
            x.stride(0),
            out.stride(0),
            num_rows,
            weight.shape[1],
            M=count,
            ROWS=rows,
            BLOCK_K=choice.block_k,
            HAS_BIAS=bias is not None,
            GATED=kind or "",
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
) -> Tensor:
    """Write the product, gated if `kind` is given, into out; x has at most MOST_TILE_TOKENS rows."""
    assert x.stride(1) == 1 and out.stride(1) == 1
    num_tokens = x.shape[0]
    block_m = max(16, next_power_of_2(num_tokens))
    blocks = -(-weight.shape[0] // choice.block_n)
    area = block_m * choice.block_n
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
        out.shape[1],
        weight.shape[1],
        BLOCK_M=block_m,
        BLOCK_N=choice.block_n,
        BLOCK_K=choice.block_k,
        SPLIT=split,
        EVEN=weight.shape[1] % choice.block_k == 0,
        PREFETCH=weight.shape[1] % 8 == 0 and weight.data_ptr() % 16 == 0 and weight.element_size() == 2,
        HAS_BIAS=bias is not None,
        GATED=kind or "",
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_stages=choice.num_stages,
        num_warps=choice.num_warps,
        **launcher_for(x.device).options,
    )
    return out
