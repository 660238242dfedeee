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
from lightllm.kernels.triton.compiling import only_compiling
from lightllm.kernels.triton.launch import launcher_for, next_power_of_2
from lightllm.kernels.triton.linear import tile_kernel, vector_kernel
from lightllm.kernels.triton.linear_choice import Choice, Choices, Persistent, Tile, Vector, choices_for

MOST_PARTIAL_BYTES = 32 << 20
BUSY_ENOUGH = 0.95
"""Share of the programs' time from which the kernel for prompts beats the library without a gate: 2% are gained at
0.97."""


class SplitWorkspace:
    """Where the parts of a split product meet; shared by all products of a device, since they run one by one."""

    def __init__(self, device: torch.device) -> None:
        self.partials = torch.empty(MOST_PARTIAL_BYTES // 4, dtype=torch.float32, device=device)
        self.counters = torch.zeros(1 << 14, dtype=torch.int32, device=device)


class LinearPacker:
    """Makes the products of one engine: `packer(weight, bias)` is `KernelSet.pack_linear`."""

    def __init__(self, device: torch.device, device_name: str) -> None:
        self._name = device_name
        self._hopper = launcher_for(device).hopper
        self._workspace = SplitWorkspace(device)

    def __call__(self, weight: Tensor, bias: Tensor | None) -> TritonLinear:
        choices = choices_for(weight.shape[0], weight.shape[1], weight.dtype, self._name, hopper=self._hopper)
        return TritonLinear(weight.contiguous(), bias, choices, self._workspace)


class TritonLinear:
    """weight [N, K], bias [N] or None; `op(x [T, K])` is x @ weight.T + bias [T, N]."""

    __slots__ = ("_choices", "_workspace", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, choices: Choices, workspace: SplitWorkspace) -> None:
        self.weight, self.bias = weight, bias
        self._choices, self._workspace = choices, workspace

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x, None)

    def add(self, x: Tensor, residual: Tensor) -> None:
        """residual [T, N], contiguous, += op(x), in place."""
        self._multiply(x, residual)

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """activation(gate) * up [T, N/2], where op(x) = [gate, up]; one kernel where one of ours serves."""
        match self._choice_for(x):
            case Vector() as choice:
                return multiply_vector(x, self.weight, self.bias, self._new(x, halves=2), choice, kind)
            case Tile() as choice:
                return multiply_tile(x, self.weight, self.bias, self._new(x, halves=2), choice, self._workspace, kind)
            case Persistent() as choice if serves_persistent(x, self.weight, self.bias, gated=True):
                return multiply_persistent(x, self.weight, self._new(x, halves=2), choice, kind)
        return gated_activation(self(x), kind)

    def _multiply(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The product, or residual with the product added."""
        add = residual is not None
        match self._choice_for(x):
            case Algorithm() as choice:
                return multiply_by(x, self.weight, self.bias, choice, self._workspace, residual)
            case Vector() as choice:
                out = self._new(x) if residual is None else residual
                return multiply_vector(x, self.weight, self.bias, out, choice, add=add)
            case Tile() as choice:
                out = self._new(x) if residual is None else residual
                return multiply_tile(x, self.weight, self.bias, out, choice, self._workspace, add=add)
            case Persistent() as choice if not add and serves_persistent(x, self.weight, self.bias):
                return multiply_persistent(x, self.weight, self._new(x), choice)
        return multiply_plainly(x, self.weight, self.bias, residual)

    def _choice_for(self, x: Tensor) -> Choice:
        return self._choices.at(x.shape[0]) if x.shape[0] else None

    def _new(self, x: Tensor, halves: int = 1) -> Tensor:
        return x.new_empty(x.shape[0], self.weight.shape[0] // halves)


def multiply_plainly(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """The product by cuBLAS as it chooses, added to the residual if there is one."""
    if residual is None:
        return functional.linear(x, weight, bias)
    if bias is not None:
        residual += bias
    return residual.addmm_(x, weight.t())


def multiply_by(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    algorithm: Algorithm,
    workspace: SplitWorkspace,
    residual: Tensor | None = None,
) -> Tensor:
    """As `multiply_plainly`, by this algorithm of cuBLASLt; by one of cuBLAS's choice where it does not serve."""
    if bias is not None or not cublaslt.version():
        return multiply_plainly(x, weight, bias, residual)
    sizes = (x.shape[0], weight.shape[0], weight.shape[1])
    product = cublaslt.cublaslt().product(sizes, weight.dtype, algorithm, workspace.partials.nbytes)
    if product is None:
        return multiply_plainly(x, weight, None, residual)
    out = x.new_empty(sizes[:2]) if residual is None else residual
    return product(x.contiguous(), weight, out, workspace.partials, add=residual is not None)


def serves_persistent(x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> bool:
    """Whether `multiply_persistent` can multiply these and is the better for it: the copy engine wants rows that begin
    at multiples of 16 bytes, and without a gate the library's product wins if programs wait long for the last."""
    tensors = (x, weight)
    half = all(t.dtype in (torch.bfloat16, torch.float16) for t in tensors)
    rows = all(t.stride(1) == 1 and t.stride(0) % 8 == 0 and t.data_ptr() % 16 == 0 for t in tensors)
    launcher = launcher_for(x.device)
    if bias is not None or not half or not rows or weight.shape[0] % (16 if gated else 8) or not launcher.hopper:
        return False
    from lightllm.kernels.triton.linear_hopper import tile_height

    _, busy = tile_height(x.shape[0], weight.shape[0], launcher.num_processors)
    return gated or busy >= BUSY_ENOUGH or only_compiling()


def multiply_persistent(
    x: Tensor, weight: Tensor, out: Tensor, choice: Persistent, kind: Activation | None = None
) -> Tensor:
    """Write the product into out [T, N], contiguous, or gated into out [T, N/2]; `serves_persistent` must hold."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from lightllm.kernels.triton import linear_hopper as kernel  # its import takes time that other devices need not

    layout, launcher = kernel.block_layout(), launcher_for(x.device)
    num_tokens, num_rows, half = x.shape[0], weight.shape[0], kernel.ROWS // 2
    chosen, _ = kernel.tile_height(num_tokens, num_rows, launcher.num_processors)
    steps = (2 * half, half) if kind is None else (half, num_rows // 2)
    for height in kernel.HEIGHTS if only_compiling() else (chosen,):
        num_m, num_n = -(-num_tokens // (height * kernel.BLOCK)), -(-num_rows // kernel.ROWS)
        kernel.prompt_product_kernel[(min(num_m * num_n, launcher.num_processors),)](
            TensorDescriptor.from_tensor(x, [kernel.BLOCK, kernel.BLOCK], layout),
            TensorDescriptor.from_tensor(weight, [half, kernel.BLOCK], layout),
            TensorDescriptor.from_tensor(out, [kernel.BLOCK, half], layout),
            num_m,
            num_n,
            -(-x.shape[1] // kernel.BLOCK),
            *steps,
            -(-choice.band // height),
            HEIGHT=height,
            STAGES=kernel.STAGES[height],
            GATED=kind or "",
            num_warps=4,
            **launcher.options,
        )
    return out


def multiply_vector(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    choice: Vector,
    kind: Activation | None = None,
    *,
    add: bool = False,
) -> Tensor:
    """Write the product, gated if `kind` is given, into out, or `add` it to what is there; the tokens go in launches of
    4, 2 and 1."""
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
    *,
    add: bool = False,
) -> Tensor:
    """As `multiply_vector`; x has at most MOST_TILE_TOKENS rows."""
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
        ADD=add,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_stages=choice.num_stages,
        num_warps=choice.num_warps,
        **launcher_for(x.device).options,
    )
    return out
