"""Products of decode batches against float64 products, for each kernel and each thing fused into it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hopper_machine import machine_for

from lightllm.kernels import cublaslt
from lightllm.kernels.cublaslt import Algorithm
from lightllm.kernels.reference import pointwise as reference
from lightllm.kernels.triton import launch
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
from lightllm.kernels.triton.linear_op import SplitWorkspace, TritonLinear, multiply_gated, serves_gated

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


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("size", [(1, 8, 8), (129, 136, 72), (700, 272, 200)], ids=str)
def test_the_gated_product_of_many_tokens_on_a_machine_of_tests(size, kind, monkeypatch):
    """Fewer and more tiles than programs, of either height; whatever runs at the same time does so in any order."""
    from lightllm.kernels.triton import activation, linear_hopper

    monkeypatch.setattr(launch, "_INTERPRETED", launch.Launcher(3, 227 << 10, dependent=True, hopper=True))
    torch.manual_seed(0)
    num_tokens, num_outputs, width = size
    x = torch.randn(num_tokens, 2 * width).bfloat16()[:, width:]
    weight = (torch.randn(2 * num_outputs, width) / width**0.5).bfloat16()
    expected = reference.gated_activation(x.double() @ weight.double().t(), kind)
    for height in linear_hopper.HEIGHTS:
        monkeypatch.setattr(linear_hopper, "tile_height", lambda *_, height=height: height)
        with machine_for(linear_hopper, "gated_product_kernel", num_tokens + height, activation):
            out = multiply_gated(x, weight, x.new_full((num_tokens, num_outputs), float("nan")), Persistent(4), kind)
        assert_close(out, expected)


needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or not launcher_for(torch.device("cuda")).hopper, reason="needs a Hopper GPU"
)


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "size",
    [(1, 8, 8), (64, 128, 64), (128, 128, 256), (129, 136, 72), (300, 1000, 328), (2500, 384, 1024), (4000, 2304, 96)],
    ids=str,
)
def test_the_gated_product_of_many_tokens(size, dtype, kind, monkeypatch):
    """Odd edges of tokens, outputs and columns; fewer and more tiles than the device has programs, of either height."""
    from lightllm.kernels.triton import linear_hopper

    num_tokens, num_outputs, width = size
    op = make_op(None, 2 * num_outputs, width, False, torch.device("cuda"), dtype)
    x = torch.randn(num_tokens, 2 * width, device="cuda").to(dtype)[:, width:]  # rows that are not next to each other
    expected = reference.gated_activation(expected_product(op, x), kind)
    assert serves_gated(x, op.weight, None)
    for height, band in product(linear_hopper.HEIGHTS, (1, 16, 32)):
        monkeypatch.setattr(linear_hopper, "tile_height", lambda *_, height=height: height)
        out = x.new_full((num_tokens, num_outputs), float("nan"))
        assert_close(multiply_gated(x, op.weight, out, Persistent(band), kind), expected)


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gates_of_any_size_and_tokens_that_are_not_numbers(dtype, kind):
    """Gates from -300 to 300, which let a 1 through; what is not finite stays in its own token."""
    gates = torch.cat([torch.linspace(-300, 300, 1201), torch.linspace(-9, 9, 1201)]).cuda().to(dtype)
    x = torch.zeros(len(gates), 16, device="cuda", dtype=dtype)
    x[:, 0], x[:, 1] = gates, 1
    weight = torch.zeros(256, 16, device="cuda", dtype=dtype)
    weight[:128, 0], weight[128:, 1] = 1, 1
    out = multiply_gated(x, weight, x.new_empty(len(x), 128), Persistent(32), kind)
    expected = reference.gated_activation(torch.stack([gates, torch.ones_like(gates)], dim=1).double(), kind)
    torch.testing.assert_close(out.double(), expected.expand(-1, 128), rtol=1e-2, atol=1e-6)
    spoiled = {5: float("nan"), 600: float("inf"), 601: -float("inf"), 2000: float("nan")}
    for token, value in spoiled.items():
        x[token, 0] = value
    again = multiply_gated(x, weight, x.new_empty(len(x), 128), Persistent(32), kind)
    sound = [token for token in range(len(x)) if token not in spoiled]
    assert torch.equal(again[sound], out[sound])
    assert not again[[5, 600, 2000]].isfinite().any()


def test_tiles_are_of_the_height_with_which_the_last_program_is_done_first():
    """Llama-3-8B's gate and up on an H200: rounds of tiles times their height, counted by hand."""
    from lightllm.kernels.triton.linear_hopper import tile_height

    measured = {1024: 2, 1500: 3, 2048: 2, 3500: 2, 8192: 3}  # the faster of the two, each
    assert {tokens: tile_height(tokens, 14336, 132) for tokens in measured} == measured
    assert tile_height(1, 1, 132) == 2, "one tile: the less of it is empty, the better"
    assert tile_height(8192, 3072, 132) == 3, "8 rounds of three, 12 of two"


@pytest.mark.gpu
@needs_hopper
def test_what_the_copy_engine_cannot_read_goes_to_the_library():
    op = make_op(None, 32, 72, False, torch.device("cuda"), torch.bfloat16)
    x = torch.randn(9, 80, device="cuda").bfloat16()
    bias = op.weight[:, 0].contiguous()
    assert serves_gated(x[:, 8:], op.weight, None)
    assert not serves_gated(x[:, 8:], op.weight, bias)
    assert not serves_gated(x[:, 1:73], op.weight, None)
    assert not serves_gated(x[:, 8:].float(), op.weight, None)
    assert not serves_gated(x[:, 8:], op.weight[:26], None)


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
