"""`lightllm bench kernels`: the GPU kernels of a step at a model's shapes, beside what bytes or operations allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lightllm.bench.report import show
from lightllm.cli.flags import parse
from lightllm.cli.precheck import check_config
from lightllm.config.locate import find_model
from lightllm.errors import ConfigError

if TYPE_CHECKING:
    from lightllm.bench.bounds import Machine
    from lightllm.bench.kernels import Inputs, ModelShape, Work
    from lightllm.device.device import Device

_ADVICE = "end what else uses the GPU"
COLUMNS = ("kernel", "case", "time", "TB/s", "TFLOP/s", "of bound", "cuBLAS")


@dataclass(frozen=True, slots=True)
class BenchKernelsFlags:
    """Time the GPU kernels of a step at the sizes of a model, beside the bound that its bytes or operations set.

    With --tune, measure instead which kernel computes each matrix product of the model fastest, and write the table
    that the engine chooses by.
    """

    model: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="MODEL")]] = None
    """Directory with a config.json, or a hub name; the shapes of Llama-3-8B and Qwen3-0.6B when omitted."""
    only: str | None = None
    """Only kernels whose name contains this."""
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """Type of weights and activations."""
    tune: bool = False
    """Measure the kernels of matrix products and write the table of the best."""
    table: str | None = None
    """File for the table; the installed one of this device when omitted. Shapes it has already are kept."""
    json: str | None = None
    """File for all figures; - for standard output."""


def run(argv: Sequence[str]) -> int:
    """Time the kernels, or tune them."""
    flags = parse(BenchKernelsFlags, "bench kernels", argv)
    if flags.table is not None and not flags.tune:
        raise ConfigError("--table is where --tune writes; give both", param="table")
    if flags.tune and flags.only is not None:
        raise ConfigError("--tune measures matrix products only; leave --only out", param="only")
    device = _gpu()
    models = _shapes(flags.model)

    import torch

    from lightllm.bench.kernels import Inputs
    from lightllm.bench.probe import measure_machine

    inputs = Inputs(device.torch_device, getattr(torch, flags.dtype))
    with torch.inference_mode():
        machine = measure_machine(device, inputs.dtype)
        limits = f"{machine.bandwidth / 1e12:.2f} TB/s read, {machine.peak / 1e12:.0f} TFLOP/s"
        show(f"{device.name}, {flags.dtype}, torch {torch.__version__}: {limits}\n\n{_line(COLUMNS)}", flags.json)
        rows = _tune(models, inputs, machine, flags, device) if flags.tune else _time(models, inputs, machine, flags)
    if flags.json is not None:
        _write(flags.json, rows, machine, device)
    return 0


def _gpu() -> Device:
    """The GPU to measure. Raises ConfigError saying what is missing."""
    from lightllm.device.device import find_device

    device, reason = find_device("auto")
    if not device.is_cuda:
        raise ConfigError(f"the kernels that are timed run on a GPU (compute capability 8.0 or later): {reason}")
    if find_spec("triton") is None:
        raise ConfigError("the kernels that are timed need Triton; install lightllm[cuda]")
    return device


def _shapes(model: str | None) -> Sequence[ModelShape]:
    from lightllm.bench.kernels import BUNDLED, ModelShape
    from lightllm.models.config_reader import ConfigReader
    from lightllm.models.registry import read_model_spec

    if model is None:
        return BUNDLED
    directory = find_model(model)
    check_config(directory)
    return [ModelShape.of(directory.name, read_model_spec(ConfigReader.load(directory), allow_unknown_keys=True))]


def _time(
    models: Sequence[ModelShape], inputs: Inputs, machine: Machine, flags: BenchKernelsFlags
) -> list[dict[str, Any]]:
    import torch

    from lightllm.bench.kernel_timing import time_launches
    from lightllm.bench.kernels import all_cases
    from lightllm.engine.budget import room_for

    cases = list(all_cases(models, inputs))
    chosen = [case for case in cases if flags.only is None or flags.only in case.kernel]
    if not chosen:
        names = ", ".join(dict.fromkeys(case.kernel for case in cases))
        raise ConfigError(f"no kernel is called {flags.only!r}; there are: {names}", param="only")
    rows = []
    for case in chosen:
        with room_for(f"{case.kernel} of {case.name}", f"{_ADVICE}, or name other kernels with --only"):
            work = case.prepare()
            vendor = time_launches(work.vendor) if work.vendor else None
            figures = _figures(work, time_launches(work.launches), vendor, machine)
        rows.append({"kernel": case.kernel, "case": case.name, **figures})
        show(_line(_cells(rows[-1])), flags.json)
        del work
        torch.cuda.empty_cache()
    return rows


def _figures(work: Work, seconds: float, vendor: float | None, machine: Machine) -> dict[str, float | None]:
    bound = max(work.num_bytes / machine.bandwidth, work.operations / machine.peak)
    return {
        "seconds": seconds,
        "bytes_per_second": work.num_bytes / seconds or None,
        "operations_per_second": work.operations / seconds or None,
        "share_of_bound": bound / seconds,
        "cublas_seconds": vendor,
    }


def _tune(
    models: Sequence[ModelShape], inputs: Inputs, machine: Machine, flags: BenchKernelsFlags, device: Device
) -> list[dict[str, Any]]:
    from lightllm.bench.kernel_tuning import as_table, installed_table, tune, write_table
    from lightllm.bench.kernels import Work
    from lightllm.engine.budget import room_for
    from lightllm.kernels.triton.linear_choice import write_choice

    path = installed_table(device.name) if flags.table is None else Path(flags.table)
    write_table(path, device.name, {})  # before the minutes that tuning takes
    tuned, rows = [], []
    with room_for("the products that are measured", f"{_ADVICE}; what was found before is in {path}"):
        for found in tune(models, inputs, device.name):
            tuned.append(found)
            work = Work((), num_bytes=found.num_rows * found.size * inputs.dtype.itemsize)
            best = write_choice(found.choice)
            case = f"{found.model} {found.weight}, {found.tokens} tokens: {' '.join(map(str, best))}"
            figures = _figures(work, found.seconds, found.vendor_seconds, machine)
            rows.append({"kernel": "linear", "case": case, **figures, "best": best, "tried": found.tried})
            show(_line(_cells(rows[-1])), flags.json)
            write_table(path, device.name, as_table(tuned))
    show(f"\nwrote {path}", flags.json)
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from lightllm.bench.tables import percent, seconds

    moved, done, vendor = row["bytes_per_second"], row["operations_per_second"], row["cublas_seconds"]
    return (
        row["kernel"],
        row["case"],
        seconds(row["seconds"]),
        "-" if moved is None else f"{moved / 1e12:.2f}",
        "-" if done is None else f"{done / 1e12:.0f}",
        percent(row["share_of_bound"]),
        "-" if vendor is None else seconds(vendor),
    )


def _line(cells: Sequence[str]) -> str:
    """One line of the table, which is printed as it grows."""
    kernel, case, *figures = cells
    return f"{kernel:18}{case:52}" + "".join(f"{figure:>10}" for figure in figures)


def _write(path: str, rows: list[dict[str, Any]], machine: Machine, device: Device) -> None:
    from lightllm.bench.report import command_line, software, write_json

    measured_on = {"device": device.name, **software(), **asdict(machine)}
    write_json(path, {"command": command_line(), "machine": measured_on, "kernels": rows})
