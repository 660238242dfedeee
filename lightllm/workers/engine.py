"""The inference stage: the loop that plans, launches, collects and emits, and what it is assembled from.

    while running:  receive messages -> plan -> launch -> collect the step before -> apply -> emit

The host plans step n+1 while the device computes step n. The same loop runs in the engine process of a server, and
in the offline API beside its caller.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightllm.config.generation import GenerationDefaults, read_generation_defaults
from lightllm.config.settings import Settings
from lightllm.engine.budget import is_out_of_memory
from lightllm.engine.build import BuiltEngine, Resolved, build
from lightllm.engine.runner import Engine, Ticket, failed_ticket
from lightllm.errors import (
    Backpressure,
    CheckpointError,
    EngineError,
    InvalidRequest,
    LightLLMError,
    OutOfMemory,
    Overloaded,
    ProtocolError,
)
from lightllm.ipc import Poller, Receiver, Sender
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import (
    Abort,
    AbortFrontend,
    DetokenizerInbox,
    Die,
    Drain,
    EngineInbox,
    EngineStarted,
    FinishReason,
    Open,
    Submit,
    TokenBatch,
    TokenOutput,
    is_from,
)
from lightllm.protocol.plan import StepResult
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.estimators import make_estimator
from lightllm.scheduler.policies import make_policy
from lightllm.scheduler.scheduler import Scheduler
from lightllm.workers.meters import EngineMeters

logger = logging.getLogger(__name__)

PROMPT_TAIL = 16
"""Prompt tokens the detokenizer sees, to know whether the output starts in mid-sentence."""
IDLE_SECONDS = 1.0
ROOM_SECONDS = 10.0
"""How long the detokenizer may leave no room for what the engine has to say."""
RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class EngineParts:
    """A scheduler and an engine that fit together. `facts` is what other processes need to know."""

    scheduler: Scheduler
    engine: Engine
    facts: dict[str, Any]
    resolved: tuple[Resolved, ...]


def build_parts(settings: Settings, directory: Path) -> EngineParts:
    """Load the model in `directory` and put a scheduler before it. Raises ConfigError and what `build` raises."""
    defaults = _generation_defaults(directory)
    built = build(settings, directory)
    _check_eos(defaults.eos_ids, built.spec.vocab_size, directory)
    scheduler_settings = replace(
        settings.scheduler,
        max_step_tokens=built.max_step_tokens,
        max_running=built.max_running,
    )
    scheduler = Scheduler(
        scheduler_settings,
        TokenMemory(
            built.total_tokens,
            prefix_cache=settings.scheduler.prefix_cache,
            eviction=settings.scheduler.prefix_eviction,
        ),
        make_policy(scheduler_settings),
        make_estimator(scheduler_settings),
        max_len=built.max_len,
        eos_ids=defaults.eos_ids,
        shareable_len=built.spec.shareable_len,
    )
    facts = {
        "vocab_size": built.spec.vocab_size,
        "max_model_len": built.max_len,
        "max_total_tokens": built.total_tokens,
        "max_running": scheduler_settings.max_running,
        "eos_ids": list(defaults.eos_ids),
        "generation_defaults": defaults.sampling,
        "device": _resolved(built, "device"),
        "dtype": _resolved(built, "dtype"),
    }
    return EngineParts(scheduler, built.engine, facts, built.resolved)


def _check_eos(eos_ids: tuple[int, ...], vocab_size: int, directory: Path) -> None:
    beyond = [eos_id for eos_id in eos_ids if eos_id >= vocab_size]
    if beyond:
        message = f"{directory}: eos_token_id {beyond[0]} is beyond the vocabulary of {vocab_size}"
        raise CheckpointError(message, param="eos_token_id")


class EngineLoop:
    """Joins a scheduler and an engine to their inboxes and the detokenizer. `depth` steps may be in flight at once.

    Of `most_requests` that run or wait, further ones are refused: a frontend knows its own only. None is no limit.
    """

    def __init__(
        self,
        parts: EngineParts,
        inboxes: Sequence[Receiver[EngineInbox]],
        outbox: Sender[DetokenizerInbox],
        *,
        generation: int = 0,
        depth: int = 2,
        meters: EngineMeters | None = None,
        most_requests: int | None = None,
    ) -> None:
        self._scheduler = parts.scheduler
        self._engine = parts.engine
        self._inboxes = inboxes
        self._outbox = outbox
        self._depth = depth
        self._meters = meters
        self._most_requests = most_requests
        self._tickets: deque[Ticket] = deque()
        self._leaving = False
        self._room: Poller[Receiver[EngineInbox]] = Poller([], [outbox])
        outbox.send(EngineStarted(generation))

    def run(self) -> None:
        """Serve until told to leave. A fault of the device is raised; anything less fails its requests only."""
        poller = Poller(self._inboxes, [self._outbox])
        while not self._leaving:
            self._receive()
            if not self.step() and not self._leaving:
                if self._meters is not None:
                    self._meters.read()
                poller.wait(0 if self._engine.prepare_next() else IDLE_SECONDS)
        self._engine.close()

    def step(self) -> bool:
        """One turn of the loop. Returns False when there is nothing to do until a message arrives."""
        launched = self._launch()
        busy = bool(self._tickets)  # before one is collected: its result may let the next request in
        if busy and (not launched or len(self._tickets) >= self._depth):
            self._emit(self._collect())
        else:
            self._emit(self._scheduler.take_outputs())
        self._outbox.flush()
        return busy

    def handle(self, message: EngineInbox) -> None:
        """Take in one message."""
        now = time.monotonic()
        match message:
            case Submit():
                self._submit(message, now)
            case Abort(request_ids, complete):
                for request_id in request_ids:
                    self._scheduler.abort(request_id, now, complete=complete)
            case AbortFrontend():
                for request_id in self._scheduler.request_ids:
                    if is_from(request_id, message):
                        self._scheduler.abort(request_id, now)
            case Die() | Drain():
                self._leaving = True

    def _receive(self) -> None:
        for inbox in self._inboxes:
            for message in inbox.receive():
                self.handle(message)

    def _submit(self, submit: Submit, now: float) -> None:
        try:
            self._check_room()
            self._scheduler.submit(submit, now)
        except (AssertionError, InvalidRequest, Overloaded) as error:
            if isinstance(error, AssertionError):
                logger.error("request %d was refused: %s", submit.request_id, error)
                error = InvalidRequest("the request does not fit")
            if self._meters is not None:
                self._meters.refused(submit.tenant, error.code)
            self._send(_open(submit))
            self._send(TokenBatch((_failure(submit.request_id, error),)))
            return
        self._send(_open(submit))

    def _check_room(self) -> None:
        limit, present = self._most_requests, self._scheduler.num_requests
        if limit is not None and present >= limit:
            raise Overloaded(f"{present} requests run or wait and 1 more pass the limit of {limit}")

    def _launch(self) -> bool:
        if len(self._tickets) >= self._depth:
            return False
        begun = time.perf_counter()
        plan = self._scheduler.schedule(time.monotonic())
        if plan is None:
            return False
        if self._meters is not None:
            self._meters.planned(plan, time.perf_counter() - begun)
        try:
            ticket = self._engine.launch(plan)
        except BaseException:  # Ctrl-C in the offline API: the scheduler counts on this step
            self._tickets.append(failed_ticket(plan.step, EngineError("interrupted while it was launched")))
            raise
        self._tickets.append(ticket)
        return True

    def _collect(self) -> list[TokenOutput]:
        ticket = self._tickets[0]  # stays there if waiting for it is interrupted
        try:
            result = self._engine.collect(ticket)
        except Exception as error:
            self._tickets.popleft()
            return self._survive(error)
        self._tickets.popleft()
        if self._meters is not None:
            self._meters.stepped(result.seconds)
        return self._apply(result)

    def _apply(self, result: StepResult) -> list[TokenOutput]:
        return self._scheduler.apply(result, time.monotonic())

    def _survive(self, error: Exception) -> list[TokenOutput]:
        """A step raised: its requests fail, unless the device itself is lost."""
        if _device_is_lost(error):
            raise error
        logger.exception("a step failed", exc_info=error)
        return self._scheduler.fail_launched(_explain(error), time.monotonic())

    def _emit(self, outputs: list[TokenOutput]) -> None:
        if not outputs:
            return
        try:
            self._send(TokenBatch(tuple(outputs)))
        except ProtocolError as error:  # larger than any message may be
            if len(outputs) > 1:
                for output in outputs:
                    self._emit([output])
                return
            request_id = outputs[0].request_id
            self._scheduler.abort(request_id, time.monotonic())
            self._send(TokenBatch((_failure(request_id, error),)))

    def _send(self, message: DetokenizerInbox) -> None:
        """Waits a while for room, as after something large. Raises Backpressure when the detokenizer does not read."""
        give_up_at = time.monotonic() + ROOM_SECONDS
        while True:
            try:
                self._outbox.send(message)
                return
            except Backpressure:
                if time.monotonic() > give_up_at:
                    raise
            self._room.wait(RETRY_SECONDS)


def _generation_defaults(directory: Path) -> GenerationDefaults:
    """What the model's makers recommend. Raises CheckpointError for values that no request may have."""
    defaults = read_generation_defaults(directory)
    try:
        SamplingParams(**defaults.sampling)  # type: ignore[arg-type]  # the types are what is checked
    except InvalidRequest as error:
        raise CheckpointError(f"{directory}/generation_config.json: {error.message}", param=error.param) from None
    return defaults


def _open(submit: Submit) -> Open:
    params = submit.params
    return Open(
        submit.request_id,
        submit.prompt[-4 * PROMPT_TAIL :],
        params.stop,
        params.include_stop_str_in_output,
        params.min_tokens,
        params.skip_special_tokens,
        params.spaces_between_special_tokens,
        params.detokenize,
    )


def _failure(request_id: int, error: LightLLMError) -> TokenOutput:
    place = () if error.param is None else (error.param,)
    return TokenOutput(request_id, finish=FinishReason.ERROR, error=(error.code, error.message, *place))


def _device_is_lost(error: Exception) -> bool:
    if is_out_of_memory(error):
        return False
    lost = getattr(torch, "AcceleratorError", None)
    return (lost is not None and isinstance(error, lost)) or "CUDA error" in str(error)


def _explain(error: Exception) -> str:
    """What a client is told: never a traceback, and for lack of memory the flag to change."""
    if is_out_of_memory(error):
        hint = "lower --max-step-tokens or --memory-fraction"
        return OutOfMemory(f"the device ran out of memory in a step; {hint}").message
    return f"the engine failed on this step ({type(error).__name__})"


def _resolved(built: BuiltEngine, name: str) -> Any:
    return next(r.value for r in built.resolved if r.name == name)
