"""`lightllm bench kernels` on a model so small that the interpreter can run it; every time is a constant."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightllm.bench import kernel_timing, kernel_tuning, kernels, probe
from lightllm.bench.bounds import Machine
from lightllm.bench.kernels import BUNDLED, ModelShape, all_cases
from lightllm.cli import bench_kernels
from lightllm.cli.main import main
from lightllm.device.device import Device
from lightllm.kernels import cublaslt
from lightllm.kernels.ops.contracts import HeadShape
from lightllm.kernels.triton.linear_choice import Tile, Vector, parse_choice

TINY = ModelShape("tiny", 32, 48, 64, 2, HeadShape(4, 2, 16, 16), True)
KERNELS = [
    *("rms_norm", "gated_activation", "rotary_store", "linear", "gated linear", "attention decode"),
    *("attention prefill", "greedy", "draw", "draw with top_p"),
]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy that does everything in a millisecond, reads 1 GB/s, computes 1 GFLOP/s, and is asked for few sizes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run_once(launches: Sequence[Callable[[], object]]) -> float:
        launches[0]()
        return 1e-3

    monkeypatch.setattr(bench_kernels, "_gpu", lambda: Device(device, "Toy GPU"))
    monkeypatch.setattr(probe, "measure_machine", lambda device, dtype: Machine(1e9, 1e9))
    monkeypatch.setattr(kernel_timing, "time_launches", run_once)
    monkeypatch.setattr(kernel_tuning, "time_in_turn", lambda groups: [run_once(launches) for launches in groups])
    monkeypatch.setattr(kernels, "copies_of", lambda size: 2)
    for name, value in {
        "BUNDLED": (TINY,),
        "STEP_TOKENS": (1, 3),
        "PRODUCT_TOKENS": (2,),
        "SAMPLED_ROWS": (2,),
        "DECODES": {"2 x 5": (5, 5)},
        "PROMPTS": {"7 after 3": ((3,), (7,))},
    }.items():
        monkeypatch.setattr(kernels, name, value)


def test_every_kernel_is_timed_beside_its_bound(
    machine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["bench", "kernels", "--dtype", "float16", "--json", str(report)]) == 0
    rows: list[dict[str, Any]] = json.loads(report.read_text())["kernels"]
    assert list(dict.fromkeys(row["kernel"] for row in rows)) == KERNELS
    (norm,) = [row for row in rows if row["kernel"] == "rms_norm" and row["case"] == "tiny 3 tokens"]
    assert norm["bytes_per_second"] == pytest.approx(2 * 3 * 32 * 2 / 1e-3)
    assert norm["share_of_bound"] == pytest.approx(2 * 3 * 32 * 2 / 1e9 / 1e-3)
    (prefill,) = [row for row in rows if row["kernel"] == "attention prefill"]
    assert prefill["operations_per_second"] == pytest.approx(4 * 7 * (3 + 4) * 4 * 16 / 1e-3)
    assert all(row["cublas_seconds"] for row in rows if row["kernel"] == "linear")
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 3


def test_only_what_is_asked_for(
    machine: None, make_checkpoint: Callable[..., tuple[Path, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, _ = make_checkpoint("Llama")
    assert main(["bench", "kernels", str(directory), "--only", "rms", "--dtype", "float16", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["kernels"]
    assert {row["kernel"] for row in rows} == {"rms_norm"}
    assert rows[0]["case"] == f"{directory.name} 1 tokens"


def test_tuning_writes_a_table_and_keeps_what_it_had(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "new" / "toy_gpu.json"
    first = "x".join(map(str, TINY.weights()["qkv"]))
    kernel_tuning.write_table(table, "Toy GPU", {"8x8": {"1": ["cublas"]}, first: {"96": ["cublas"]}})
    choices = [Vector(32, 64, 2), Vector(3, 64, 2), Tile(64, 64, 1, 2, 4)]  # the second cannot be compiled
    monkeypatch.setattr(kernel_tuning, "candidates", lambda tokens, gated: choices)
    monkeypatch.setattr(kernel_tuning, "TOKENS", (1, 2))
    monkeypatch.setattr(kernel_tuning, "PROMPT_TOKENS", 3)
    ticks = iter(range(10_000, 0, -1))
    monkeypatch.setattr(
        kernel_tuning, "time_in_turn", lambda groups: [group[0]() is not None and next(ticks) for group in groups]
    )
    arguments = ["bench", "kernels", "--tune", "--dtype", "float16"]
    assert main([*arguments, "--table", str(table), "--json", str(tmp_path / "rows.json")]) == 0
    shapes = json.loads(table.read_text())["linear"]
    assert shapes.pop("8x8") == {"1": ["cublas"]}
    assert shapes[first].pop("96") == ["cublas"]  # as after a run that was stopped
    assert [path.name for path in table.parent.iterdir()] == [table.name]
    assert set(shapes) == {f"{rows}x{size}" for rows, size in TINY.weights().values()}
    for shape, steps in shapes.items():
        prompts = shape != f"{TINY.vocab}x{TINY.hidden}"
        for beyond in ("7168", "1048576"):
            assert steps.pop(beyond, None) == (["cublas"] if prompts else None)  # not measured
        assert set(steps) == ({"1", "2", "3"} if prompts else {"1", "2"})
        assert all(parse_choice(entry) == choices[2] for entry in steps.values())
    tried = json.loads((tmp_path / "rows.json").read_text())["kernels"][0]["tried"]
    assert len(tried) == 3  # the two and what is used without a table


def test_a_table_loses_the_algorithms_of_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, steps = tmp_path / "toy_gpu.json", {"64": ["cublaslt", *range(9)], "1": ["vector", 1, 64, 2]}
    monkeypatch.setattr(cublaslt, "version", lambda: 130100)
    kernel_tuning.write_table(table, "Toy GPU", {"8x8": steps})
    kernel_tuning.write_table(table, "Toy GPU", {})
    assert json.loads(table.read_text())["linear"]["8x8"] == steps
    monkeypatch.setattr(cublaslt, "version", lambda: 130200)
    kernel_tuning.write_table(table, "Toy GPU", {})
    assert json.loads(table.read_text())["linear"]["8x8"] == steps | {"64": ["cublas"]}


def test_the_bundled_shapes_have_every_kernel() -> None:
    cases = list(all_cases(BUNDLED, kernels.Inputs(torch.device("cpu"), torch.bfloat16)))
    assert {case.kernel for case in cases} == set(KERNELS)
    assert len({(case.kernel, case.name) for case in cases}) == len(cases)
    assert all(candidate for tokens in kernel_tuning.TOKENS for candidate in kernel_tuning.candidates(tokens))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "magic"], "no kernel is called 'magic'; there are: rms_norm"),
        (["--table", "x"], "--table is where --tune writes"),
        (["--tune", "--only", "linear"], "--tune measures matrix products only"),
        (["--tune", "--table", "/dev/null/x"], "cannot write the table /dev/null/x"),
        (["/no/such/model"], "neither a directory nor a hub name"),
    ],
)
def test_mistakes(machine: None, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_gpu_that_others_fill(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*launches: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(kernel_timing, "time_launches", fill)
    monkeypatch.setattr(kernel_tuning, "time_in_turn", fill)
    monkeypatch.setattr(kernel_tuning, "TOKENS", (1,))
    arguments = ["bench", "kernels", "--dtype", "float16"]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: no room for rms_norm of tiny 1 tokens; end what else uses the")
    monkeypatch.setattr(kernel_tuning, "candidates", lambda tokens, gated: [])
    assert main([*arguments, "--tune", "--table", str(tmp_path / "toy_gpu.json")]) == 1
    assert capsys.readouterr().err.startswith("error: no room for the products that are measured; end what else uses")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels"]) == 1
    error = capsys.readouterr().err
    assert "run on a GPU" in error and "--device cpu" not in error


@pytest.mark.gpu
def test_a_time_is_that_of_one_launch() -> None:
    source = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    once = kernel_timing.time_launches([lambda: target.copy_(source)] * 4)
    twice = kernel_timing.time_launches([lambda: (target.copy_(source), target.copy_(source))] * 4)
    assert 1.5 < twice / once < 2.5


def test_what_a_graph_takes_to_start_is_shared_by_many_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_timing, "_record", lambda launches: launches)
    monkeypatch.setattr(kernel_timing, "_replay", lambda launches: 8.0 + len(launches))
    assert kernel_timing.time_launches(["a", "b", "c"]) == (8 + 18) / 18  # type: ignore[list-item]
    assert kernel_timing.time_in_turn([["a"] * 32, ["b"]]) == [40 / 32, 24 / 16]  # type: ignore[list-item]


def test_groups_are_timed_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What slows all down for a while slows none of them in particular."""
    seen: list[str] = []
    slow = iter([1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 2.0, 2.0, 2.0])  # a device that is hot in the second turn

    def replay(graph: str) -> float:
        seen.append(graph)
        return next(slow) * {"a": 4.0, "b": 2.0, "c": 6.0}[graph]

    monkeypatch.setattr(kernel_timing, "FEWEST_LAUNCHES", 1)
    monkeypatch.setattr(kernel_timing, "_record", lambda launches: launches[0])
    monkeypatch.setattr(kernel_timing, "_replay", replay)
    assert kernel_timing.time_in_turn([["a", "a"], ["b"], ["c"] * 3]) == [4.0, 4.0, 4.0]  # type: ignore[list-item]
    assert seen == ["a", "b", "c"] * 3
