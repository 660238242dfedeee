"""The offline Python API: the serving pipeline in one process, without HTTP.

    from lightllm import LLM, SamplingParams
    llm = LLM()                                        # the bundled demo model
    outputs = llm.generate(["Hello"], SamplingParams(max_tokens=20))

The engine loop and the detokenizer are those of the server; only the channels between them are in-process twins.
"""

from __future__ import annotations

import operator
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import count
from numbers import Real
from threading import Lock, current_thread, main_thread
from types import TracebackType
from typing import Any

from lightllm.config.locate import find_model, find_tokenizer, read_template
from lightllm.config.settings import Settings
from lightllm.errors import ConfigError, InvalidRequest, LightLLMError, Unavailable, error_from_code
from lightllm.ipc import Receiver, Sender, local_channel
from lightllm.protocol.messages import Abort, DetokenizerInbox, EngineInbox, FinishReason, Submit, TextBatch, TextOutput
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.text.chat import ChatTemplate, check_template_kwargs
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.detokenizer import DetokenizerLoop
from lightllm.workers.engine import EngineLoop, build_parts
from lightllm.workers.intake import Intake

Prompt = str | Sequence[int]
Message = dict[str, Any]

PATIENCE = 0.01
"""Seconds that a thread waits for another's turn before it looks whether that brought what it waits for."""


@dataclass(slots=True)
class TokenLogprob:
    """One position: the chosen token's log-probability and rank (0 is the likeliest), and the likeliest tokens."""

    logprob: float
    rank: int
    top: list[tuple[int, float]]


@dataclass(slots=True)
class CompletionOutput:
    """One choice. `finish_reason` is "stop" or "length"; `stop_reason` the stop string or token id that ended it."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its `n` choices. `prompt_logprobs` has None for the first token, which nothing predicts."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0


@dataclass(slots=True)
class _Arrived:
    """Text that nobody has read yet, by request; the requests of one call share what it reads. Not part of `LLM`, which
    would then be in a circle with its detokenizer, so that dropping it would not free its memory at once."""

    readers: dict[int, deque[TextOutput]] = field(default_factory=dict)

    def take(self, frontend: int, batch: TextBatch) -> None:
        for output in batch.outputs:
            reader = self.readers.get(output.request_id)
            if reader is not None:
                reader.append(output)


class LLM:
    """A model ready to generate. Keyword arguments are the fields of the settings, e.g. `max_total_tokens=4096`.

    Several threads may call it: each takes a turn of the engine loop when it waits, and their requests share steps.

    Raises ConfigError for an unknown setting, CheckpointError for a directory that cannot be served.
    """

    def __init__(self, model: str | None = None, *, settings: Settings | None = None, **overrides: Any) -> None:
        settings = override_settings(settings or Settings(), {"model": model, **overrides})
        directory = find_model(settings.model.model)
        self.settings = settings
        self.tokenizer = Tokenizer.load(find_tokenizer(settings.model.tokenizer, directory))
        self._template: ChatTemplate | None = None
        self._parts = build_parts(settings, directory)
        to_engine, self._engine_inbox = _engine_channel()
        to_detokenizer, self._detokenizer_inbox = _detokenizer_channel()
        self._to_engine = to_engine
        self._arrived = _Arrived()
        self._turning = Lock()
        self._closed = False
        self._loop = EngineLoop(self._parts, [self._engine_inbox], to_detokenizer)
        self._detokenizer = DetokenizerLoop(self.tokenizer, self._arrived.take, to_engine)
        facts = self._parts.facts
        self._intake = Intake(self.tokenizer, facts["vocab_size"], facts["max_model_len"], facts["eos_ids"])
        self._request_ids = count(1)

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        return self._intake.max_model_len

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Generate for each prompt (text, or token ids as they are); results in the order of the prompts.

        `params` is one for all or one for each. Raises InvalidRequest, ContextLengthExceeded, or Unavailable once it
        was closed, before anything runs.
        """
        self._check_open()
        listed = _as_prompts(prompts)
        each = _as_params(params, len(listed))
        ids = [self._encode(prompt) for prompt in listed]
        arrival = time.monotonic()
        submits = [self._intake.submits(i, p, self._request_ids, arrival) for i, p in zip(ids, each, strict=True)]
        outputs = [
            RequestOutput(
                prompt if isinstance(prompt, str) else None,
                prompt_ids,
                [CompletionOutput(index) for index in range(len(group))],
            )
            for prompt, prompt_ids, group in zip(listed, ids, submits, strict=True)
        ]
        owners = {
            submit.request_id: (output, output.outputs[turn])
            for output, group in zip(outputs, submits, strict=True)
            for turn, submit in enumerate(group)
        }
        self._run([submit for group in submits for submit in group], owners, progress)
        return outputs

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[TextOutput]:
        """Generate for one prompt, piece by piece as it is made; leaving the iterator early stops the work.

        Raises InvalidRequest, also for more than one choice, and Unavailable once it was closed.
        """
        self._check_open()
        params = params or SamplingParams()
        if params.n != 1:
            raise InvalidRequest(f"a stream has one choice, n is {params.n}", param="n")
        ids = self._encode(prompt)
        (submit,) = self._intake.submits(ids, params, self._request_ids, time.monotonic())
        return self._pieces(submit)

    def _pieces(self, submit: Submit) -> Iterator[TextOutput]:
        """Several of these may be read in turn: each keeps what arrives for it while another is read."""
        arrived: deque[TextOutput] = deque()
        self._arrived.readers[submit.request_id] = arrived
        self._to_engine.send(submit)
        ended = False
        try:
            while not ended:
                while not arrived:
                    self._turn()
                output = arrived.popleft()
                ended = output.finish is not None or output.error is not None
                if output.error is not None:
                    raise error_from_code(*output.error)
                yield output
        finally:
            del self._arrived.readers[submit.request_id]
            if not ended:
                self._to_engine.send(Abort((submit.request_id,)))
                self._turn(patience=0)  # a garbage collection may have closed it in the middle of a turn

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        progress: bool = True,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Render one conversation, or several, with the chat template and generate the next assistant turn."""
        conversations: Any = [messages] if messages and isinstance(messages[0], dict) else messages
        check_template_kwargs(template_kwargs)
        rendered = [self.template.render(list(turns), tools, **template_kwargs) for turns in conversations]
        ids = [self.tokenizer.encode(text, add_special_tokens=False) for text in rendered]
        params = params if params is not None else SamplingParams(max_tokens=None)
        outputs = self.generate(ids, params, progress=progress)
        for output, text in zip(outputs, rendered, strict=True):
            output.prompt = text
        return outputs

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises ConfigError for a template file that cannot be read."""
        if self._template is None:
            replacement = self.settings.model.chat_template
            source: Any = read_template(replacement) if replacement else self.tokenizer.chat_templates
            self._template = ChatTemplate(source, self.tokenizer.special_tokens)
        return self._template

    def close(self) -> None:
        """Give back the engine's thread and memory. Nothing can be generated any more."""
        self._closed = True
        self._parts.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        try:
            return [operator.index(token) for token in prompt]
        except TypeError:
            raise InvalidRequest(f"a prompt is text or token ids, got {prompt!r:.60}", param="prompt") from None

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this LLM was closed; make another")

    def _run(
        self, submits: list[Submit], owners: dict[int, tuple[RequestOutput, CompletionOutput]], progress: bool
    ) -> None:
        """Turn the loop until every request has ended. If one fails, or the caller interrupts, the others stop."""
        arrived: deque[TextOutput] = deque()
        readers = self._arrived.readers
        readers.update((submit.request_id, arrived) for submit in submits)
        try:
            for submit in submits:
                self._to_engine.send(submit)
            with _progress_bar(len(owners), progress) as advance:
                while owners:
                    while not arrived:
                        self._turn()
                    if _take_in(arrived.popleft(), owners):
                        advance()
        finally:
            for submit in submits:
                del readers[submit.request_id]
            if owners:
                self._to_engine.send(Abort(tuple(owners)))
                self._turn()
            while self._parts.scheduler.has_work and not readers:
                self._turn()  # what was launched before a failure runs out

    def _turn(self, patience: float = PATIENCE) -> None:
        """One turn of the loops, unless one that is under way lasts longer than so many seconds."""
        with _interrupts_held_back():
            if not self._turning.acquire(timeout=patience):
                return
            try:
                for message in self._engine_inbox.receive():
                    self._loop.handle(message)
                self._loop.step()
                for tokens in self._detokenizer_inbox.receive():
                    self._detokenizer.handle(tokens)
                self._detokenizer.flush()
            finally:
                self._turning.release()


def override_settings(settings: Settings, values: dict[str, Any]) -> Settings:
    """Settings with fields replaced by name, whichever section they are in. Raises ConfigError for an unknown one."""
    known = {
        name.name: section.name for section in fields(settings) for name in fields(getattr(settings, section.name))
    }
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown setting {name}; known: {', '.join(sorted(known))}", param=name)
        if name != "model" or value is not None:
            changes.setdefault(known[name], {})[name] = value
    return replace(settings, **{name: replace(getattr(settings, name), **new) for name, new in changes.items()})


def _take_in(output: TextOutput, owners: dict[int, tuple[RequestOutput, CompletionOutput]]) -> bool:
    """Add a piece of output to the choice it belongs to; True when that choice has ended. Raises its error."""
    owner = owners.get(output.request_id)
    if owner is None:
        return False
    request, choice = owner
    choice.text += output.text
    choice.token_ids.extend(output.token_ids)
    if output.logprobs:
        entries = [TokenLogprob(entry.logprob, entry.rank, entry.pairs()) for entry in output.logprobs]
        choice.logprobs = (choice.logprobs or []) + entries
    if output.prompt_logprobs and choice.index == 0:
        scored = [None if e is None else TokenLogprob(e.logprob, e.rank, e.pairs()) for e in output.prompt_logprobs]
        request.prompt_logprobs = (request.prompt_logprobs or []) + scored
    request.num_cached_tokens = max(request.num_cached_tokens, output.cached_tokens)
    if output.finish is None and output.error is None:
        return False
    del owners[output.request_id]
    if output.error is not None:
        raise error_from_code(*output.error)
    if output.finish in (FinishReason.ABORT, FinishReason.ERROR):
        raise LightLLMError(f"the request ended with {output.finish}")
    choice.finish_reason = str(output.finish)
    choice.stop_reason = output.stop_reason
    return True


def _engine_channel() -> tuple[Sender[EngineInbox], Receiver[EngineInbox]]:
    return local_channel()


def _detokenizer_channel() -> tuple[Sender[DetokenizerInbox], Receiver[DetokenizerInbox]]:
    return local_channel()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A Ctrl-C within is told at the end: in the middle of the scheduler's work it would leave slots that are nobody's.
    Only the main thread hears of one."""
    handler = signal.getsignal(signal.SIGINT) if current_thread() is main_thread() else None
    if not callable(handler):
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar of finished choices on a terminal's stderr, nothing elsewhere; yields the function that advances it."""
    if not shown or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("generating", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) and _is_number(prompts[0])):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    """Whether this is one number and not a prompt: Python's, numpy's or torch's."""
    return isinstance(value, Real) or getattr(value, "ndim", None) == 0


def _as_params(params: SamplingParams | Sequence[SamplingParams] | None, wanted: int) -> list[SamplingParams]:
    if params is None:
        return [SamplingParams()] * wanted
    if isinstance(params, SamplingParams):
        return [params] * wanted
    if len(params) != wanted:
        raise InvalidRequest(f"{len(params)} sampling parameters for {wanted} prompts", param="params")
    return list(params)
