"""Products of decode batches against float64 products, for each kernel and each thing fused into it."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lightllm.kernels import cublaslt
from lightllm.kernels.cublaslt import Algorithm
from lightllm.kernels.reference import pointwise as reference
from lightllm.kernels.triton.launch import launcher_for
from lightllm.kernels.triton.linear_choice import (
    Choice,
    Choices,
    Persistent,
    Tile,
    Vector,
    choices_for,
    parse_choice,
    table_name,
    tuned_table,
    write_choice,
)
from lightllm.kernels.triton.linear_op import SplitWorkspace, TritonLinear, multiply_persistent, serves_persistent

KERNELS = [None, Persistent(8), Vector(1, 64, 1), Vector(2, 128, 2), Tile(32, 32, 1, 2, 4), Tile(64, 32, 3, 3, 4)]
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
def test_the_product_alone_and_added_to_a_residual(size, bias, choice, device, dtype):
    if device.type == "cpu" and dtype != torch.float32 and bias:
        pytest.skip("differs in rounding only")
    num_tokens, num_rows, width = size
    op = make_op(choice, num_rows, width, bias, device, dtype)
    x = torch.randn(num_tokens, width, device=device).to(dtype)
    expected = expected_product(op, x)
    assert_close(op(x), expected)
    residual = torch.randn(num_tokens, num_rows, device=device).to(dtype)
    expected_sum = expected + residual.double()
    op.add(x, residual)
    assert_close(residual, expected_sum)


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
    residual = torch.empty(0, 8, device=device)
    op.add(empty, residual)
    assert residual.shape == (0, 8)


def test_a_split_product_leaves_its_counters_at_zero(device):
    op = make_op(Tile(32, 32, 4, 2, 4), 96, 256, False, device, torch.float32)
    x = torch.randn(3, 256, device=device)
    first = op(x)
    assert torch.equal(op(x), first)
    assert not op._workspace.counters.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(96, 512, 1024), (130, 1536, 320), (1, 72, 64), (300, 1024, 8192)], ids=str)
def test_the_library_multiplies_by_each_algorithm_it_suggests(size, dtype):
    num_tokens, num_rows, width = size
    workspace = SplitWorkspace(torch.device("cuda"))
    found = cublaslt.cublaslt().suggestions(size, dtype, workspace.partials.nbytes)
    assert found
    x = torch.randn(num_tokens, 2 * width, device="cuda").to(dtype)[:, :width]  # rows that are not next to each other
    weight = (torch.randn(num_rows, width, device="cuda") / width**0.5).to(dtype)
    for algorithm in found:
        assert cublaslt.cublaslt().product(size, dtype, algorithm, workspace.partials.nbytes) is not None
        op = TritonLinear(weight, None, Choices(((1 << 20, algorithm),), "test"), workspace)
        expected = expected_product(op, x)
        assert_close(op(x), expected)
        residual = torch.randn(num_tokens, num_rows, device="cuda").to(dtype)
        expected += residual.double()
        op.add(x, residual)
        assert_close(residual, expected)


needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or not launcher_for(torch.device("cuda")).hopper, reason="needs a Hopper GPU"
)


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("kind", [None, "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "size",
    [(1, 16, 8), (64, 256, 64), (128, 256, 256), (129, 272, 72), (300, 2000, 328), (2500, 768, 1024), (4000, 4608, 96)],
    ids=str,
)
def test_products_of_many_tokens(size, dtype, kind, monkeypatch):
    """Odd edges of tokens, rows and columns; fewer and more tiles than the device has programs, of either height."""
    from lightllm.kernels.triton import linear_hopper

    num_tokens, num_rows, width = size
    op = make_op(None, num_rows, width, False, torch.device("cuda"), dtype)
    x = torch.randn(num_tokens, 2 * width, device="cuda").to(dtype)[:, width:]  # rows that are not next to each other
    expected = expected_product(op, x)
    if kind is not None:
        expected = reference.gated_activation(expected, kind)
    for height, band in product(linear_hopper.HEIGHTS, (1, 16, 32)):
        monkeypatch.setattr(linear_hopper, "tile_height", lambda *_, height=height: (height, 1.0))
        assert serves_persistent(x, op.weight, None, gated=kind is not None)
        out = x.new_full(expected.shape, float("nan"))
        assert_close(multiply_persistent(x, op.weight, out, Persistent(band), kind), expected)


def test_tiles_are_of_the_height_with_which_the_last_program_is_done_first():
    """Llama-3-8B's gate and up on an H200: rounds of tiles times their height, counted by hand."""
    from lightllm.kernels.triton.linear_hopper import tile_height

    measured = {1024: 2, 1500: 3, 2048: 2, 3500: 2, 8192: 3}  # the faster of the two, each
    assert {tokens: tile_height(tokens, 28672, 132)[0] for tokens in measured} == measured
    assert tile_height(1, 1, 132) == (2, pytest.approx(1 / (64 * 256 * 132 * 2))), "the less of a tile is empty"
    assert tile_height(8192, 6144, 132) == (3, pytest.approx(128 * 24 / 132 / 24)), "8 rounds of three, 12 of two"


@pytest.mark.gpu
@needs_hopper
def test_what_the_copy_engine_cannot_read_goes_to_the_library():
    op = make_op(None, 32, 72, False, torch.device("cuda"), torch.bfloat16)
    x = torch.randn(9, 80, device="cuda").bfloat16()
    bias = op.weight[:, 0].contiguous()
    assert serves_persistent(x[:, 8:], op.weight, None, gated=True)
    assert not serves_persistent(x[:, 8:], op.weight, bias, gated=True)
    assert not serves_persistent(x[:, 1:73], op.weight, None, gated=True)
    assert not serves_persistent(x[:, 8:].float(), op.weight, None, gated=True)
    assert not serves_persistent(x[:, 8:], op.weight[:24], None, gated=True)


@pytest.mark.gpu
@needs_hopper
def test_without_a_gate_the_library_multiplies_what_would_leave_programs_idle():
    weight = torch.randn(6144, 64, device="cuda").bfloat16()
    processors = launcher_for(weight.device).num_processors
    full = torch.randn(128 * processors, 64, device="cuda").bfloat16()
    assert serves_persistent(full, weight, None)
    assert not serves_persistent(full[: 128 * (processors // 24) + 1], weight, None)
    op = TritonLinear(weight, None, Choices(((1 << 20, Persistent(32)),), "test"), SplitWorkspace(weight.device))
    for x in (full, full[:641]):
        residual = torch.randn(len(x), 6144, device="cuda").bfloat16()
        expected = expected_product(op, x)
        assert_close(op(x), expected)
        expected += residual.double()
        op.add(x, residual)
        assert_close(residual, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_where_an_algorithm_does_not_serve_the_library_chooses(bias):
    unknown = Algorithm(66, 31999, 1, 0, 0, 0, 35, 0, 4)
    op = make_op(unknown, 64, 128, bias, torch.device("cuda"), torch.bfloat16)
    x = torch.randn(5, 128, device="cuda").bfloat16()
    assert_close(op(x), expected_product(op, x))
    assert_close(op.gated(x, "silu"), reference.gated_activation(expected_product(op, x), "silu"))


def test_algorithms_of_another_version_of_the_library_are_left_to_it(monkeypatch):
    def choices() -> set[Choice]:
        tuned_table.cache_clear()
        return {choice for steps in tuned_table("NVIDIA H200").values() for _, choice in steps}

    monkeypatch.setattr(cublaslt, "version", lambda: 130100)
    assert any(isinstance(choice, Algorithm) for choice in choices())
    monkeypatch.setattr(cublaslt, "version", lambda: 1)
    assert not any(isinstance(choice, Algorithm) for choice in choices())
    tuned_table.cache_clear()


def test_choices_survive_the_table_and_unknown_shapes_get_a_rule():
    for choice in (*KERNELS, Algorithm(66, 26, 1, 0, 0, 1, 35, 0, 4)):
        assert parse_choice(write_choice(choice)) == choice
    with pytest.raises(ValueError, match="unknown kernel 'magic'"):
        parse_choice(["magic", 1])
    choices = choices_for(4096, 4096, torch.bfloat16, "No Such Device", hopper=False)
    assert isinstance(choices.at(1), Vector) and choices.at(65) is None and choices.at(9000) is None
    choices = choices_for(4096, 4096, torch.bfloat16, "Unmeasured Hopper", hopper=True)
    assert isinstance(choices.at(1), Vector) and choices.at(65) is None and choices.at(9000) == Persistent(32)
    assert choices_for(4096, 4096, torch.float32, "NVIDIA H200", hopper=True).at(1) is None
    assert table_name("NVIDIA H200") == "nvidia_h200.json"
