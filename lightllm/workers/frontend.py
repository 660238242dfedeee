"""The frontend's heart: it turns checked requests into messages to the engine and text messages into streams.

    HTTP handlers ──generate──▶ Frontend ──Submit, Abort──▶ engine
                 ◀─Generation──          ◀──TextBatch────── detokenizer
                                         ◀──WorkerState──── supervisor

It knows which workers are up, which requests live, and every limit that can be checked before the engine sees a
request. It knows no HTTP. Everything but `encode`'s thread runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from lightllm.config.settings import Settings
from lightllm.errors import (
    Backpressure,
    Draining,
    InvalidRequest,
    LightLLMError,
    NotReady,
    Overloaded,
    Unavailable,
    WorkerDied,
    error_from_code,
)
from lightllm.ipc import Sender, drain
from lightllm.metrics import MetricSet
from lightllm.protocol.messages import (
    Abort,
    Die,
    Drain,
    EngineInbox,
    EngineStarted,
    FinishReason,
    FrontendInbox,
    Submit,
    Terms,
    TextBatch,
    TextOutput,
    WorkerState,
    make_request_id,
)
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.generation import Choice, Generation
from lightllm.workers.intake import DEFAULT_TERMS, Intake, check_text_len
from lightllm.workers.tally import Tally

__all__ = ["Frontend", "Generation"]

T = TypeVar("T")
INLINE_CHARS = 400
"""Texts up to this length are tokenized on the event loop; a thread would cost more than it saves."""
PROBE_FRESH_SECONDS = 10.0
REQUIRED = ("engine", "detokenizer")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Worker:
    up: bool = False
    generation: int = -1
    message: str = "is starting"


class Frontend:
    """One frontend process without its HTTP server.

    index: number of this frontend, the upper bits of its request ids
    sender: channel to the engine
    model_name: the name to serve if the settings give none
    created: start of the server, seconds since the epoch
    generation: how often this frontend was started before
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        settings: Settings,
        sender: Sender[EngineInbox],
        metrics: MetricSet | None = None,
        model_name: str = "lightllm",
        created: int | None = None,
        generation: int = 0,
    ) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.settings = settings
        self.metrics = metrics
        self.model_names = settings.model.served_model_name or (model_name,)
        self.created = int(time.time()) if created is None else created
        self.facts: dict[str, Any] = {}
        """What the engine said of itself: vocab_size, max_model_len, eos_ids, generation_defaults, ..."""
        self.draining = False
        self.tally = Tally(metrics)
        self._sender = sender
        self._intake: Intake | None = None
        start = secrets.randbits(39)  # a restarted frontend must not repeat ids that still live
        self._request_ids = (make_request_id(index, number, generation) for number in count(start))
        self._live: dict[int, Choice] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._workers = {name: _Worker() for name in REQUIRED}
        self._unsent: list[int] = []
        self._flushing: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[bool] | None = None
        self._output_at = 0.0
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tokenize")

    # state

    @property
    def ready(self) -> bool:
        """Whether the workers that a request needs are up."""
        return all(worker.up for worker in self._workers.values())

    @property
    def num_live(self) -> int:
        """Choices that are being generated."""
        return len(self._live)

    @property
    def max_model_len(self) -> int | None:
        """Most tokens of prompt and output together, once the engine has said so."""
        return self.facts.get("max_model_len")

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has; 0 until the engine has said so."""
        return int(self.facts.get("vocab_size", 0))

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """Sampling defaults of the model's generation_config.json."""
        return self.facts.get("generation_defaults") or {}

    def check_available(self) -> Intake:
        """What checks requests for the model that is up. Raises Draining or NotReady if nothing can be taken."""
        if self.draining:
            raise Draining("the server is shutting down and takes no new requests")
        for name, worker in self._workers.items():
            if not worker.up:
                raise NotReady(f"the {name} {worker.message}; try again shortly")
        if self._intake is None:
            raise NotReady("the engine has not said which model it serves; try again shortly")
        return self._intake

    async def can_generate(self, timeout: float = 5.0) -> bool:
        """Whether a token can be generated now: text arrived lately, or a request for one token is answered in time."""
        if self.draining or not self.ready:
            return False
        if time.monotonic() - self._output_at < PROBE_FRESH_SECONDS:
            return True
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe(timeout))
        return await asyncio.shield(self._probing)

    async def _probe(self, timeout: float) -> bool:
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        try:
            async with asyncio.timeout(timeout):
                with self.generate([[self.tokenizer.bos_id or 0]], params, counted=False) as generation:
                    async for _ in generation:
                        pass
        except (TimeoutError, LightLLMError):
            return time.monotonic() - self._output_at < PROBE_FRESH_SECONDS
        return True

    # text

    async def offload(self, size: int, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call `function` here if its input is small (`size` characters or bytes), else in a thread."""
        if size <= INLINE_CHARS:
            return function(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; a long text is tokenized in a thread.

        Raises InvalidRequest for bad Unicode, ContextLengthExceeded for a text that cannot fit.
        """
        check_text_len(text, self.tokenizer, self.max_model_len)
        return await self.offload(len(text), self.tokenizer.encode, text, add_special_tokens)

    # requests

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        terms: Terms = DEFAULT_TERMS,
        arrival: float | None = None,
        counted: bool = True,
    ) -> Generation:
        """Start `params.n` choices for each prompt (token ids).

        Without a seed each choice draws its own; with one, choice i of a prompt uses seed + i modulo 2^64.
        `max_tokens=None` means the rest of the context. `arrival` is on the monotonic clock. Without `counted` no
        metric notices.

        Raises InvalidRequest, ContextLengthExceeded, Overloaded, Draining or NotReady, and then has started nothing.
        """
        tally = self.tally if counted else Tally(None)
        arrival = time.monotonic() if arrival is None else arrival
        generation = Generation([len(prompt) for prompt in prompts], params.n, arrival, tally, self._abandon)
        try:
            intake = self.check_available()
            self.check_room(len(prompts) * params.n)
            submits = [
                submit
                for prompt in prompts
                for submit in intake.submits(prompt, params, self._request_ids, arrival, terms=terms)
            ]
            for submit in submits:
                self._submit(generation, submit)
        except LightLLMError:
            generation.close()
            raise
        return generation

    def _submit(self, generation: Generation, submit: Submit) -> None:
        self._send(submit)
        choice = self._live[submit.request_id] = generation.add(submit.request_id)
        self._idle.clear()
        generation.tally.accepted(generation.prompt_lens[choice.index // generation.n])

    def check_room(self, wanted: int) -> None:
        """Raise InvalidRequest for more choices than can ever be queued, Overloaded for more than can be now."""
        limit = self.settings.scheduler.max_waiting + int(self.facts.get("max_running", 0))
        if wanted > limit:
            raise InvalidRequest(f"the request asks for {wanted} choices, at most {limit} can be queued", param="n")
        if len(self._live) + wanted > limit:
            raise Overloaded(f"{len(self._live)} requests run or wait and {wanted} more pass the limit of {limit}")

    # messages

    def receive(self, message: FrontendInbox) -> None:
        """Take one message of the inbox; called on the event loop. Never raises for what a message says."""
        match message:
            case TextBatch():
                self._take_text(message)
            case WorkerState():
                self._take_state(message)
            case EngineStarted():
                self._take_engine_start(message.generation)
            case Drain():
                self.draining = True
            case Die():
                self.fail_all(Draining("the server stopped"))

    def fail_all(self, error: LightLLMError, *, abort: bool = True) -> None:
        """End every live generation with `error`; with `abort` the engine is told to stop the work."""
        choices = list(self._live.values())
        for generation in {choice.generation for choice in choices}:
            generation.fail(error)
        self._forget(choices, FinishReason.ERROR)
        if abort:
            self._send_abort([choice.request_id for choice in choices])

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is live, at most `timeout` seconds; False if time ran out."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop the tokenization threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _take_text(self, batch: TextBatch) -> None:
        now = time.monotonic()
        self._output_at = now
        for output in batch.outputs:
            choice = self._live.get(output.request_id)
            if choice is not None:
                self._take_output(choice, output, now)

    def _take_output(self, choice: Choice, output: TextOutput, now: float) -> None:
        generation = choice.generation
        error = _terminal_error(output)
        if error is not None:
            siblings = generation.live - {choice}
            generation.fail(error)
            self._forget([choice], FinishReason.ERROR)
            self._forget(siblings, FinishReason.ABORT)
            self._send_abort([sibling.request_id for sibling in siblings])
            return
        if output.token_ids:
            first = choice.last_at is None
            since = now - (generation.arrival if choice.last_at is None else choice.last_at)
            generation.tally.tokens(len(output.token_ids), since, first=first)
            choice.first_at = now if choice.first_at is None else choice.first_at
            choice.last_at = now
        generation.deliver(choice, output)
        if output.finish is not None:
            self._forget([choice], output.finish)

    def _take_state(self, state: WorkerState) -> None:
        worker = self._workers.get(state.worker)
        if worker is None or state.generation < worker.generation:
            return
        replaced = state.up and worker.up and state.generation > worker.generation
        if replaced or (worker.up and not state.up):
            reason = f": {state.message}" if state.message and not state.up else ""
            error = WorkerDied(f"the {state.worker} stopped while it served the request{reason}")
            self.fail_all(error, abort=state.worker != "engine")
        worker.up, worker.generation = state.up, state.generation
        worker.message = "is up" if state.up else "is not running" + (f" ({state.message})" if state.message else "")
        if state.up and state.worker == "engine":
            self._learn(state.facts)

    def _learn(self, facts: Mapping[str, Any]) -> None:
        self._output_at = 0.0
        if facts:
            self.facts = dict(facts)
            sizes = int(facts["vocab_size"]), int(facts["max_model_len"])
            self._intake = Intake(self.tokenizer, *sizes, facts["eos_ids"])

    def _take_engine_start(self, generation: int) -> None:
        """A new engine took over; what an earlier one had is gone. Its WorkerState follows."""
        worker = self._workers["engine"]
        if generation > worker.generation:
            self.fail_all(WorkerDied("the engine was restarted while it served the request"), abort=False)
            worker.up, worker.generation, worker.message = False, generation, "is starting"

    # leaving and sending

    def _abandon(self, choices: list[Choice], disconnected: bool) -> None:
        """A generation was left before its end."""
        self._forget(choices, FinishReason.ABORT)
        if disconnected:
            choices[0].generation.tally.disconnected(len(choices))
        self._send_abort([choice.request_id for choice in choices])

    def _forget(self, choices: Sequence[Choice] | set[Choice], reason: FinishReason) -> None:
        now = time.monotonic()
        for choice in choices:
            if self._live.pop(choice.request_id, None) is not None:
                decode = now - choice.first_at if choice.first_at is not None else 0.0
                choice.generation.tally.finished(reason, choice.generated, now - choice.generation.arrival, decode)
        if not self._live:
            self._idle.set()

    def _send_abort(self, request_ids: Sequence[int]) -> None:
        """An abort is never lost: if the channel is full it goes as soon as there is room."""
        if not request_ids:
            return
        try:
            self._send(Abort(tuple(request_ids)))
        except Backpressure:
            self._unsent += request_ids
            self._flush_later()

    def _send(self, message: EngineInbox) -> None:
        self._sender.send(message)
        if not self._sender.flush():
            self._flush_later()

    def _flush_later(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        await drain(self._sender)
        while self._unsent:
            unsent, self._unsent = self._unsent, []
            self._sender.send(Abort(tuple(unsent)))
            await drain(self._sender)


def _terminal_error(output: TextOutput) -> LightLLMError | None:
    """The error that an output ends its request with, if any."""
    if output.error is not None:
        return error_from_code(*output.error)
    if output.finish is FinishReason.ERROR:
        return LightLLMError("the engine ended the request without a reason")
    if output.finish is FinishReason.ABORT:
        return Unavailable("the server aborted the request")
    return None
