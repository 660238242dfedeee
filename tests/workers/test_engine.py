"""What the engine loop does when the detokenizer cannot take what it says, and what it refuses to start with."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightllm.config.settings import SchedulerSettings, Settings
from lightllm.errors import Backpressure, CheckpointError
from lightllm.ipc import Ring, RingReader, RingReceiver, RingSender, RingWriter, local_channel
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.codec import Codec
from lightllm.protocol.messages import (
    AbortFrontend,
    DetokenizerInbox,
    EngineStarted,
    FinishReason,
    Open,
    Submit,
    TokenBatch,
    TokenOutput,
    frontend_of,
    make_request_id,
    pack_ids,
)
from lightllm.protocol.plan import StepPlan, StepResult
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler import scheduler as real
from lightllm.scheduler.estimators import make_estimator
from lightllm.scheduler.policies import make_policy
from lightllm.workers.engine import EngineLoop, EngineParts, _device_is_lost, build_parts

CODEC: Codec[DetokenizerInbox] = Codec(DetokenizerInbox)


class Scheduler:
    """Has nothing to run; its outputs are what a test puts there."""

    def __init__(self) -> None:
        self.outputs: list[TokenOutput] = []
        self.aborted: list[int] = []

    def schedule(self, now: float) -> None:
        return None

    def take_outputs(self) -> list[TokenOutput]:
        outputs, self.outputs = self.outputs, []
        return outputs

    def abort(self, request_id: int, now: float) -> None:
        self.aborted.append(request_id)


def parts(scheduler: Any) -> EngineParts:
    engine: Any = None  # nothing is launched
    return EngineParts(scheduler, engine, {}, ())


def output(request_id: int, num_tokens: int) -> TokenOutput:
    return TokenOutput(request_id, token_ids=tuple(range(1000, 1000 + num_tokens)))


def outputs_of(receiver: RingReceiver[DetokenizerInbox]) -> list[TokenOutput]:
    batches = [message for message in receiver.receive() if isinstance(message, TokenBatch)]
    return [output for batch in batches for output in batch.outputs]


def test_what_is_too_large_fails_its_request_only() -> None:
    ring = Ring.create(1 << 16)
    scheduler = Scheduler()
    loop = EngineLoop(parts(scheduler), [], RingSender(RingWriter(ring, max_message_bytes=1000), CODEC.encode))
    receiver: RingReceiver[DetokenizerInbox] = RingReceiver(RingReader(ring), CODEC.decode)
    scheduler.outputs = [output(1, 200), output(2, 5000), output(3, 200)]
    loop.step()
    found = outputs_of(receiver)
    assert [(one.request_id, len(one.token_ids), one.finish) for one in found] == [
        (1, 200, None),
        (2, 0, FinishReason.ERROR),
        (3, 200, None),
    ]
    assert found[1].error is not None and found[1].error[0] == "protocol_error" and "1000 bytes" in found[1].error[1]
    assert scheduler.aborted == [2]
    loop.step()
    assert outputs_of(receiver) == []


def test_the_engine_waits_for_a_detokenizer_that_catches_up() -> None:
    ring = Ring.create(1 << 12)
    scheduler = Scheduler()
    loop = EngineLoop(parts(scheduler), [], RingSender(RingWriter(ring, backlog_bytes=4096), CODEC.encode))
    receiver: RingReceiver[DetokenizerInbox] = RingReceiver(RingReader(ring), CODEC.decode)
    found: list[TokenOutput] = []

    def read() -> None:
        deadline = time.monotonic() + 10
        time.sleep(0.05)
        while len(found) < 20 and time.monotonic() < deadline:
            found.extend(outputs_of(receiver))
            time.sleep(0.005)

    reader = threading.Thread(target=read)
    reader.start()
    for request_id in range(20):
        scheduler.outputs = [output(request_id, 500)]
        loop.step()
    while reader.is_alive():
        loop.step()  # flushes
        time.sleep(0.005)
    assert [one.request_id for one in found] == list(range(20))


def test_the_engine_gives_up_on_a_detokenizer_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.workers.engine.ROOM_SECONDS", 0.1)
    ring = Ring.create(1 << 12)
    scheduler = Scheduler()
    loop = EngineLoop(parts(scheduler), [], RingSender(RingWriter(ring, backlog_bytes=4096), CODEC.encode))
    with pytest.raises(Backpressure):
        for request_id in range(20):
            scheduler.outputs = [output(request_id, 500)]
            loop.step()


class Parrot:
    """An engine that says 7 to everything."""

    def launch(self, plan: StepPlan) -> StepPlan:
        return plan

    def collect(self, plan: StepPlan) -> StepResult:
        said = np.full(int(plan.sampled.sum()), 7, np.int32)
        return StepResult(plan.step, said, np.ones(len(said), np.int32), seconds=0.01)


def real_loop(most_requests: int | None = None) -> tuple[EngineLoop, real.Scheduler, Any]:
    """A loop around a real scheduler, and what comes out of it; two requests run at a time."""
    settings = SchedulerSettings(max_running=2, max_step_tokens=16)
    policy, estimator = make_policy(settings), make_estimator(settings)
    scheduler = real.Scheduler(settings, TokenMemory(32), policy, estimator, max_len=16)
    engine: Any = Parrot()
    channel: tuple[Any, Any] = local_channel()
    loop = EngineLoop(EngineParts(scheduler, engine, {}, ()), [], channel[0], most_requests=most_requests)
    return loop, scheduler, channel[1]


def submit(number: int) -> Submit:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    return Submit(number, pack_ids([number % 1000 + 1] * 4), params, 4, number, 0.0)


def test_those_who_wait_run_as_soon_as_all_others_end_at_once() -> None:
    """No message comes to wake the loop: it must not report that there is nothing to do."""
    loop, scheduler, _ = real_loop()
    for number in range(6):
        loop.handle(submit(number))
    while loop.step():
        pass
    assert scheduler.num_requests == 0 and scheduler.counters.num_finished == 6


def test_all_frontends_together_have_one_limit() -> None:
    loop, scheduler, receiver = real_loop(most_requests=3)
    for frontend in range(5):
        loop.handle(submit(make_request_id(frontend, 1)))
    while loop.step():
        pass
    loop.handle(submit(make_request_id(3, 2)))
    while loop.step():
        pass
    messages = receiver.receive()
    assert sum(isinstance(message, Open) for message in messages) == 6
    outputs = [output for message in messages if isinstance(message, TokenBatch) for output in message.outputs]
    refused = {frontend_of(output.request_id): output.error for output in outputs if output.error is not None}
    assert refused == dict.fromkeys((3, 4), ("overloaded", "3 requests run or wait and 1 more pass the limit of 3"))
    assert [frontend_of(output.request_id) for output in outputs if output.finish is FinishReason.LENGTH][-1] == 3
    assert scheduler.num_requests == 0 and scheduler.counters.num_finished == 4


def test_the_successor_of_a_dead_frontend_keeps_its_requests() -> None:
    """Its requests may come before the news of the death, when a step took long."""
    loop, _, receiver = real_loop()
    earlier, later, other = make_request_id(0, 9), make_request_id(0, 3, generation=1), make_request_id(1, 4)
    for request_id in (earlier, later, other):
        loop.handle(submit(request_id))
    loop.handle(AbortFrontend(0))
    while loop.step():
        pass
    batches = [message for message in receiver.receive() if isinstance(message, TokenBatch)]
    ends = {output.request_id: output.finish for batch in batches for output in batch.outputs if output.finish}
    assert ends == {earlier: FinishReason.ABORT, later: FinishReason.LENGTH, other: FinishReason.LENGTH}


def test_the_first_word_is_the_start() -> None:
    ring = Ring.create(1 << 12)
    EngineLoop(parts(Scheduler()), [], RingSender(RingWriter(ring), CODEC.encode), generation=3)
    assert RingReceiver(RingReader(ring), CODEC.decode).receive() == [EngineStarted(3)]


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1), ("temperature", "warm"), ("top_p", 2.0), ("top_k", 1.5), ("min_p", True)]
)
def test_recommended_values_that_no_request_may_have(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, name: value}))
    with pytest.raises(CheckpointError, match=f"generation_config.json: {name} must"):
        build_parts(Settings(), tmp_path)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: out of memory", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("shape mismatch", False),
    ],
)
def test_a_lack_of_memory_is_no_lost_device(text: str, lost: bool) -> None:
    kinds = [RuntimeError, *([torch.AcceleratorError] if lost and hasattr(torch, "AcceleratorError") else [])]
    assert [_device_is_lost(kind(text)) for kind in kinds] == [lost] * len(kinds)
