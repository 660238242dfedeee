"""Memory that runs out while an engine is built: every place says what had no room and which flag to change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from lightllm.config.settings import EngineSettings, ModelSettings, SchedulerSettings, Settings
from lightllm.device.device import Device
from lightllm.engine import build as building
from lightllm.engine import frame as framing
from lightllm.engine.budget import plan_pool, room_for
from lightllm.errors import OutOfMemory
from lightllm.kvcache.pool import KvLayout
from lightllm.protocol.plan import StepPlan

FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    RuntimeError("CUDA error: out of memory"),
    MemoryError(),
]


def failing(error: BaseException) -> Any:
    def fail(*args: object, **options: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_what_counts_as_out_of_memory(error: BaseException) -> None:
    with pytest.raises(OutOfMemory, match=r"^no room for everything; take less$"), room_for("everything", "take less"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), OutOfMemory("said already")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), room_for("everything", "take less"):
        raise error


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("choose_kernels", ["the kernels' workspace", "--device cpu"]),
        ("Decoder", ["the weights in float32", "GiB are free", "--dtype bfloat16"]),
        ("SafetensorsSource.take_stacked", ["the weights in float32", "--dtype bfloat16"]),
        ("KvPool", ["a KV pool of 64 tokens of 768 bytes", "--max-total-tokens"]),
        ("RowTables", ["the tables of its requests", "--max-running", "--max-model-len"]),
    ],
)
def test_each_stage_names_its_flag(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: list[str]
) -> None:
    home = framing if hasattr(framing, place) and not hasattr(building, place) else building
    name, _, method = place.partition(".")
    monkeypatch.setattr(getattr(home, name) if method else home, method or name, failing(FAILURES[0]))
    with pytest.raises(OutOfMemory) as caught:
        building.build(Settings(engine=EngineSettings(device="cpu", max_total_tokens=64)), tiny_llama)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_dummy_weights_too(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.DummySource, "take_stacked", failing(FAILURES[0]))
    settings = Settings(ModelSettings(dummy=True, dtype="bfloat16"), EngineSettings(device="cpu"))
    with pytest.raises(OutOfMemory, match=r"the weights in bfloat16 .* use a smaller model") as caught:
        building.build(settings, tiny_llama)
    assert "--dtype" not in caught.value.message


@pytest.mark.parametrize("stage", ["engine", "check", "collect"])
def test_a_step_that_does_not_fit_names_its_flags(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    pytest.importorskip("triton")
    for name, value in {"synchronize": None, "reset_peak_memory_stats": None, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    ticket = SimpleNamespace(check=lambda: None)
    engine = SimpleNamespace(launch=lambda plan: ticket, collect=lambda ticket: None)
    frame: Any = SimpleNamespace(
        device=SimpleNamespace(torch_device=None),
        kernels=SimpleNamespace(attention=SimpleNamespace(reserve=lambda *sizes: None)),
        max_running=4,
        engine=lambda *args, **options: engine,
    )
    setattr({"engine": frame, "check": ticket, "collect": engine}[stage], stage, failing(FAILURES[0]))
    with pytest.raises(OutOfMemory, match=r"a step of 90 tokens of 4 requests .* --max-step-tokens or --max-running"):
        framing.measure_step(frame, 90, 256)


def test_the_measured_step_is_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    plans: list[StepPlan] = []
    names = {"synchronize": None, "reset_peak_memory_stats": None, "memory_allocated": 30, "max_memory_allocated": 100}
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    ticket = SimpleNamespace(check=lambda: None)
    engine = SimpleNamespace(launch=lambda plan: plans.append(plan) or ticket, collect=lambda ticket: None)
    frame: Any = SimpleNamespace(
        device=SimpleNamespace(torch_device=None),
        kernels=SimpleNamespace(attention=SimpleNamespace(reserve=lambda *sizes: None)),
        max_running=4,
        engine=lambda *args, **options: engine,
    )
    assert framing.measure_step(frame, 90, 256) == 70
    compiled, plan = plans
    assert compiled.num_tokens == plan.num_tokens == 90 and plan.num_sequences == 4 and bool(np.all(plan.sampled))
    assert framing.measure_step(frame, 90, 20) == 70
    assert plans[-1].lens.tolist() == [20] * 4, "no sequence is longer than the model takes"


def test_memory_is_printed_with_reasons(tiny_llama: Path) -> None:
    scheduler = SchedulerSettings(max_running=2)
    built = building.build(Settings(ModelSettings(dummy=True), EngineSettings(device="cpu"), scheduler), tiny_llama)
    resolved = {r.name: (str(r.value), r.reason) for r in built.resolved}
    assert resolved["weights"][0].endswith("GiB of float32") and resolved["weights"][1].startswith("random, in ")
    assert resolved["kv pool"][0] == "512 tokens, 0.00 GiB"
    assert "--max-running requests of --max-model-len" in resolved["kv pool"][1]
    assert resolved["max running"] == ("2", "asked for")


def test_no_more_run_than_the_pool_holds(tiny_llama: Path) -> None:
    engine = EngineSettings(device="cpu", max_total_tokens=200)
    built = building.build(Settings(ModelSettings(dummy=True), engine), tiny_llama)
    (resolved,) = [r for r in built.resolved if r.name == "max running"]
    assert (built.max_running, resolved.value, resolved.reason) == (200, 200, "what the KV pool holds")


def test_many_run_at_once_where_there_is_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = Device(torch.device("cuda"), "Some GPU"), Device(torch.device("cpu"), "Some CPU")
    for gib, device, expected in ((141, gpu, 512), (80, gpu, 512), (24, gpu, 256), (500, cpu, 256)):
        monkeypatch.setattr(building, "total_memory", lambda device, gib=gib: gib << 30)
        assert building._most_running(Settings(), device)[0] == expected
        assert building._most_running(Settings(scheduler=SchedulerSettings(max_running=3)), device)[0] == 3


def test_weights_beyond_the_free_memory_are_not_begun(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host hands out more memory than it has and kills who uses it."""
    monkeypatch.setattr(building, "free_memory", lambda device: 1000)
    monkeypatch.setattr(building, "Decoder", failing(AssertionError("was begun")))
    settings = Settings(model=ModelSettings(model=str(tiny_llama)), engine=EngineSettings(device="cpu"))
    with pytest.raises(OutOfMemory, match=r"weights in float32 \(0.00 GiB are free\), which take at least .* --dtype"):
        building.build(settings, tiny_llama)


def test_no_room_for_a_pool_names_the_flags() -> None:
    layout = KvLayout(1, 1, 8, torch.float32)
    device, _ = building.find_device("cpu")
    with pytest.raises(OutOfMemory, match="--memory-fraction"):
        plan_pool(layout, EngineSettings(memory_fraction=1e-12), device, 1000)
