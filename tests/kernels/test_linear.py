"""Products of decode batches against float64 products, for each kernel and each thing fused into it."""

from __future__ import annotations

import pytest
import torch

from lightllm.kernels.reference import pointwise as reference
from lightllm.kernels.triton.linear_choice import (
    Choice,
    Choices,
    Tile,
    Vector,
    choices_for,
    parse_choice,
    table_name,
    write_choice,
)
from lightllm.kernels.triton.linear_op import SplitWorkspace, TritonLinear

KERNELS = [None, Vector(1, 64, 1), Vector(2, 128, 2), Tile(32, 32, 1, 2, 4), Tile(64, 32, 3, 3, 4)]
SIZES = [(1, 64, 64), (2, 66, 129), (3, 2, 32), (17, 40, 200)]


def make_op(choice: Choice, num_rows: int, size: int, bias: bool, device: torch.device, dtype: torch.dtype):
    weight = (torch.randn(num_rows, size, device=device) / size**0.5).to(dtype)
    vector = torch.randn(num_rows, device=device).to(dtype) if bias else None
    return TritonLinear(weight, vector, Choices(((64, choice),), "test"), SplitWorkspace(device))


def expected_product(op: TritonLinear, x: torch.Tensor) -> torch.Tensor:
    product = x.double() @ op.weight.double().t()
    return product if op.bias is None else product + op.bias.double()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    bound = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=bound, atol=bound)


@pytest.fixture(params=KERNELS, ids=lambda c: "cublas" if c is None else "-".join(str(n) for n in write_choice(c)))
def choice(request: pytest.FixtureRequest) -> Choice:
    return request.param


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_plain_product(size, bias, choice, device, dtype):
    if device.type == "cpu" and dtype != torch.float32 and bias:
        pytest.skip("differs in rounding only")
    num_tokens, num_rows, width = size
    op = make_op(choice, num_rows, width, bias, device, dtype)
    x = torch.randn(num_tokens, width, device=device).to(dtype)
    assert_close(op(x), expected_product(op, x))


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_gated_product(num_tokens, bias, choice, device, dtype):
    if device.type == "cpu" and dtype != torch.float32 and bias:
        pytest.skip("differs in rounding only")
    op = make_op(choice, 26, 96, bias, device, dtype)
    x = torch.randn(num_tokens, 96, device=device).to(dtype)
    assert_close(op.gated(x, "gelu_tanh"), reference.gated_activation(expected_product(op, x), "gelu_tanh"))


def test_no_tokens_give_no_rows(choice, device):
    op = make_op(choice, 8, 16, True, device, torch.float32)
    empty = torch.empty(0, 16, device=device)
    assert op(empty).shape == (0, 8)
    assert op.gated(empty, "silu").shape == (0, 4)


def test_a_split_product_leaves_its_counters_at_zero(device):
    op = make_op(Tile(32, 32, 4, 2, 4), 96, 256, False, device, torch.float32)
    x = torch.randn(3, 256, device=device)
    first = op(x)
    assert torch.equal(op(x), first)
    assert not op._workspace.counters.any()


def test_choices_survive_the_table_and_unknown_shapes_get_a_rule():
    for choice in KERNELS:
        assert parse_choice(write_choice(choice)) == choice
    with pytest.raises(ValueError, match="unknown kernel 'magic'"):
        parse_choice(["magic", 1])
    choices = choices_for(4096, 4096, torch.bfloat16, "No Such Device")
    assert isinstance(choices.at(1), Vector) and choices.at(65) is None
    assert choices_for(4096, 4096, torch.float32, "NVIDIA H200").at(1) is None
    assert table_name("NVIDIA H200") == "nvidia_h200.json"
