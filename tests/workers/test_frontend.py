"""The frontend without HTTP: limits, seeds, endings, and what it tells the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from lightllm.config.settings import SchedulerSettings, Settings
from lightllm.errors import (
    Backpressure,
    ContextLengthExceeded,
    Draining,
    EngineError,
    InvalidRequest,
    NotReady,
    Overloaded,
    WorkerDied,
)
from lightllm.protocol.messages import (
    Abort,
    Drain,
    EngineInbox,
    EngineStarted,
    FinishReason,
    Submit,
    TextBatch,
    TextOutput,
    WorkerState,
    unpack_ids,
)
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.text.checkpoint import TextFiles
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.frontend import Frontend

PARAMS = SamplingParams(max_tokens=4)
Test = Callable[["Desk"], Coroutine[Any, Any, None]]


class Desk:
    """A frontend and the messages that it sent."""

    def __init__(self) -> None:
        backend = Backend(models.BPE(vocab={"a": 0, "b": 1, "Ġ": 2}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        settings = Settings(scheduler=SchedulerSettings(max_running=2, max_waiting=4))
        self.sent: list[EngineInbox] = []
        self.full = False
        self.frontend = Frontend(1, Tokenizer(backend, TextFiles()), settings, self)

    def send(self, message: EngineInbox) -> None:
        if self.full:
            raise Backpressure("full")
        self.sent.append(message)

    def flush(self) -> bool:
        return True

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing is held."""

    def start(self) -> None:
        self.state("engine", facts={"vocab_size": 3, "max_model_len": 10, "max_running": 2, "eos_ids": [2]})
        self.state("detokenizer")

    def state(self, worker: str, up: bool = True, generation: int = 0, facts: Any = None) -> None:
        self.frontend.receive(WorkerState(worker, up, generation, facts=facts or {}))

    def text(self, submit: Submit, text: str = "x", finish: FinishReason | None = None, **more: Any) -> None:
        self.frontend.receive(TextBatch((TextOutput(submit.request_id, text, (0,), finish=finish, **more),)))

    @property
    def submits(self) -> list[Submit]:
        return [message for message in self.sent if isinstance(message, Submit)]

    @property
    def aborted(self) -> list[int]:
        return [i for message in self.sent if isinstance(message, Abort) for i in message.request_ids]


def desk_test(test: Test) -> Callable[[], None]:
    """Run a coroutine with a started desk."""

    def run() -> None:
        async def main() -> None:
            desk = Desk()
            desk.start()
            await test(desk)
            desk.frontend.close()

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@desk_test
async def test_choices_end_one_by_one(desk: Desk) -> None:
    generation = desk.frontend.generate([[0, 1]], SamplingParams(n=2, max_tokens=None, seed=(1 << 64) - 1))
    first, second = desk.submits
    assert (first.seed, second.seed) == ((1 << 64) - 1, 0) and first.max_tokens == 8
    assert unpack_ids(first.prompt).tolist() == [0, 1] and first.params.n == 1
    desk.text(first, "a", cached_tokens=1)
    desk.text(second, "b", FinishReason.LENGTH)
    desk.text(second, "late")
    desk.text(first, "c", FinishReason.STOP)
    assert [(index, output.text) async for index, output in generation] == [(0, "a"), (1, "b"), (0, "c")]
    assert (generation.prompt_tokens, generation.completion_tokens, generation.cached_tokens) == (2, 3, 1)
    assert desk.frontend.num_live == 0 and desk.aborted == []


@desk_test
async def test_limits(desk: Desk) -> None:
    cases: list[tuple[list[list[int]], SamplingParams, type[Exception], str]] = [
        ([[]], PARAMS, InvalidRequest, "no tokens"),
        ([[0], [3]], PARAMS, InvalidRequest, "token id 3"),
        ([[-1]], PARAMS, InvalidRequest, "token id -1"),
        ([[0] * 10], SamplingParams(max_tokens=None), ContextLengthExceeded, "10 tokens; a prompt of 10"),
        ([[0] * 7], PARAMS, ContextLengthExceeded, "a prompt of 7 tokens and max_tokens of 4"),
        ([[0]], SamplingParams(n=7), InvalidRequest, "7 choices, at most 6"),
        ([[0]], SamplingParams(max_tokens=2, stop_token_ids=(9,)), InvalidRequest, "stop_token_ids"),
    ]
    for prompts, params, kind, words in cases:
        with pytest.raises(kind, match=words):
            desk.frontend.generate(prompts, params)
    desk.frontend.generate([[0]] * 3, SamplingParams(n=2, max_tokens=1))
    with pytest.raises(Overloaded, match="limit of 6"):
        desk.frontend.generate([[0]], PARAMS)
    assert len(desk.submits) == 6


@desk_test
async def test_leaving_early_aborts_what_lives(desk: Desk) -> None:
    with desk.frontend.generate([[0]], SamplingParams(n=3, max_tokens=4)) as generation:
        first, *rest = desk.submits
        desk.text(first, "a", FinishReason.STOP)
        async for _ in generation:
            break
    assert desk.aborted == [submit.request_id for submit in rest] and desk.frontend.num_live == 0
    desk.text(rest[0], "late")
    generation.close()
    assert len(desk.aborted) == 2


@desk_test
async def test_cancellation_aborts(desk: Desk) -> None:
    generation = desk.frontend.generate([[0]], PARAMS)
    task = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert desk.aborted == [desk.submits[0].request_id]


@desk_test
async def test_an_error_ends_all_choices(desk: Desk) -> None:
    generation = desk.frontend.generate([[0]], SamplingParams(n=2, max_tokens=4))
    first, second = desk.submits
    desk.text(first, "a")
    desk.text(first, "", FinishReason.ERROR, error=("engine_error", "broken"))
    assert (await anext(generation))[1].text == "a"
    with pytest.raises(EngineError, match="broken"):
        await anext(generation)
    with pytest.raises(StopAsyncIteration):
        await anext(generation)
    assert desk.aborted == [second.request_id]


@desk_test
async def test_a_dead_engine_is_not_told_a_dead_detokenizer_is_worked_around(desk: Desk) -> None:
    for worker, told in (("engine", 0), ("detokenizer", 1)):
        generation = desk.frontend.generate([[0]], PARAMS)
        desk.state(worker, up=False)
        with pytest.raises(WorkerDied, match=worker):
            await anext(generation)
        with pytest.raises(NotReady, match=f"the {worker} is not running"):
            desk.frontend.generate([[0]], PARAMS)
        assert len(desk.aborted) == told
        desk.state(worker, generation=1)
        assert desk.frontend.ready


@desk_test
async def test_generations_of_workers(desk: Desk) -> None:
    desk.frontend.receive(EngineStarted(0))  # the one that is known
    live = desk.frontend.generate([[0]], PARAMS)
    desk.state(
        "engine", up=True, generation=2, facts={"vocab_size": 2, "max_model_len": 10, "eos_ids": [2]}
    )  # its end was not heard
    with pytest.raises(WorkerDied):
        await anext(live)
    desk.state("engine", up=False, generation=1)  # late
    desk.frontend.receive(EngineStarted(2))
    assert desk.frontend.ready
    with pytest.raises(InvalidRequest, match="token id 2"):
        desk.frontend.generate([[2]], PARAMS)
    live = desk.frontend.generate([[0]], PARAMS)
    desk.frontend.receive(EngineStarted(3))
    assert not desk.frontend.ready and desk.frontend.num_live == 0


@desk_test
async def test_a_full_channel_refuses_and_keeps_aborts(desk: Desk) -> None:
    generation = desk.frontend.generate([[0]], PARAMS)
    desk.full = True
    with pytest.raises(Backpressure):
        desk.frontend.generate([[0]], PARAMS)
    generation.close()
    assert desk.aborted == [] and desk.frontend.num_live == 0
    desk.full = False
    await asyncio.sleep(0.01)
    assert desk.aborted == [desk.submits[0].request_id]


@desk_test
async def test_drain(desk: Desk) -> None:
    generation = desk.frontend.generate([[0]], PARAMS)
    desk.frontend.receive(Drain(1.0))
    with pytest.raises(Draining):
        desk.frontend.generate([[0]], PARAMS)
    assert not await desk.frontend.wait_idle(0.01)
    desk.text(desk.submits[0], "a", FinishReason.STOP)
    assert await desk.frontend.wait_idle(1.0) and not await desk.frontend.can_generate()
    assert [output.text async for _, output in generation] == ["a"]


@desk_test
async def test_bad_words_become_tokens(desk: Desk) -> None:
    desk.frontend.generate([[0]], SamplingParams(bad_words=("ab", " b"), max_tokens=1))
    assert desk.submits[0].bad_words == ((0, 1), (1,))  # a space of its own adds nothing


@desk_test
async def test_long_texts_leave_the_event_loop(desk: Desk) -> None:
    import threading

    seen: list[Any] = []
    await desk.frontend.offload(10, lambda: seen.append(threading.current_thread()))
    await desk.frontend.offload(10_000, lambda: seen.append(threading.current_thread()))
    assert seen[0] is threading.main_thread() and seen[1] is not threading.main_thread()
