"""An engine and a detokenizer that play a script, behind the channels of the real ones, and a live server on top."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightllm.config.settings import ModelSettings, SchedulerSettings, ServerSettings, Settings
from lightllm.ipc import LocalSender, local_channel
from lightllm.protocol.codec import Codec
from lightllm.protocol.messages import (
    Abort,
    Die,
    EngineInbox,
    ErrorParts,
    FinishReason,
    FrontendInbox,
    Submit,
    TextBatch,
    TextOutput,
    TopLogprobs,
    WorkerState,
    unpack_ids,
)
from lightllm.server.app import create_app
from lightllm.server.process import run_frontend
from lightllm.text.detokenizer import Detokenizer
from lightllm.text.stops import StopMatcher
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.frontend import Frontend

MAX_MODEL_LEN = 1024
REPLY = "Hello, wörld 🎉! How are you today?"


@dataclass
class Script:
    """How the fake answers: the text, seconds between tokens, an error after some tokens, or never an end."""

    reply: str | Callable[[Submit], str] = REPLY
    delay: float = 0.0
    error: tuple[int, ErrorParts] | None = None
    hang_after: int | None = None
    ids: list[int] | None = None


@dataclass
class FakeEngine:
    """Receives what the frontend sends; each Submit becomes a task that sends text. Messages pass the codec."""

    tokenizer: Tokenizer
    script: Script = field(default_factory=Script)
    submits: list[Submit] = field(default_factory=list)
    aborted: dict[int, float] = field(default_factory=dict)
    outbox: LocalSender[FrontendInbox] | None = None
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    codec: Codec[EngineInbox] = field(default_factory=lambda: Codec(EngineInbox))

    def send(self, message: EngineInbox) -> None:
        message = self.codec.decode(self.codec.encode(message))
        if isinstance(message, Submit):
            self.submits.append(message)
            self.tasks[message.request_id] = asyncio.create_task(self._play(message, self.script))
        elif isinstance(message, Abort):
            for request_id in message.request_ids:
                self.aborted[request_id] = time.monotonic()
                if task := self.tasks.pop(request_id, None):
                    task.cancel()

    def flush(self) -> bool:
        return True

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing is held."""

    def emit(self, output: TextOutput) -> None:
        assert self.outbox is not None
        self.outbox.send(TextBatch((output,)))

    async def _play(self, submit: Submit, script: Script) -> None:
        text = script.reply if isinstance(script.reply, str) else script.reply(submit)
        ids = self.tokenizer.encode(text, add_special_tokens=False) if script.ids is None else script.ids
        detokenizer = Detokenizer(self.tokenizer, skip_special_tokens=submit.params.skip_special_tokens)
        stops = StopMatcher(submit.params.stop, submit.params.include_stop_str_in_output)
        first = _first(submit)
        if submit.max_tokens == 0:
            self.emit(replace_struct(first, finish=FinishReason.LENGTH))
            return
        for place, token_id in enumerate(ids):
            await asyncio.sleep(script.delay)
            if script.error is not None and place == script.error[0]:
                self.emit(TextOutput(submit.request_id, "", finish=FinishReason.ERROR, error=script.error[1]))
                return
            if place == script.hang_after:
                await asyncio.sleep(3600)
            finish: FinishReason | None = None
            piece, hit = stops.push(detokenizer.push([token_id]))
            if hit is not None:
                finish = FinishReason.STOP
            elif place + 1 == submit.max_tokens:
                finish = FinishReason.LENGTH
            elif place + 1 == len(ids):
                finish = FinishReason.STOP
            if finish is not None and hit is None:
                piece += stops.push(detokenizer.flush())[0] + stops.flush()
            self.emit(
                TextOutput(
                    submit.request_id,
                    piece,
                    token_ids=(token_id,),
                    logprobs=() if submit.params.logprobs is None else (top(token_id, submit.params.logprobs),),
                    finish=finish,
                    stop_reason=hit,
                    cached_tokens=first.cached_tokens,
                    prompt_logprobs=first.prompt_logprobs if place == 0 else (),
                )
            )
            if finish is not None:
                return


def top(token_id: int, k: int, logprob: float = -0.25) -> TopLogprobs:
    """The token is the likeliest; then ids 10, 11, ... with falling values and minus infinity at the end."""
    ids = [token_id, *range(10, 10 + k)][:k]
    values = [logprob, *(-1.0 - rank for rank in range(k))][:k]
    if k > 2:
        values[-1] = float("-inf")
    return TopLogprobs(logprob, 0, np.array(ids, np.int32).tobytes(), np.array(values, np.float32).tobytes())


def replace_struct(output: TextOutput, **changes: Any) -> TextOutput:
    import msgspec

    return msgspec.structs.replace(output, **changes)


def _first(submit: Submit) -> TextOutput:
    k = submit.params.prompt_logprobs
    found: tuple[TopLogprobs | None, ...] = ()
    if k is not None:
        prompt = unpack_ids(submit.prompt).tolist()
        found = (None, *(top(token_id, max(k, 0), -2.0) for token_id in prompt[1:]))
    return TextOutput(submit.request_id, "", cached_tokens=3, prompt_logprobs=found)


class LiveServer:
    """A frontend on a free port, in a thread, run as its process would run it."""

    def __init__(self, tokenizer: Tokenizer, *, metrics: Any = None, ready: bool = True, **server: Any) -> None:
        self.engine = FakeEngine(tokenizer)
        self.settings = Settings(
            model=ModelSettings(served_model_name=("toy", "toy-alias")),
            scheduler=SchedulerSettings(max_running=8, max_waiting=24),
            server=replace(ServerSettings(), **server),
        )
        codec: Codec[FrontendInbox] = Codec(FrontendInbox)
        self.outbox, self._inbox = local_channel(codec.encode, codec.decode, strict=True)
        self.engine.outbox = self.outbox
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self._metrics = metrics
        self.frontend: Frontend
        self._up = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._up.wait(10)
        if ready:
            self.start_workers()

    def start_workers(self, generation: int = 1, **facts: Any) -> None:
        sizes = {"vocab_size": 600, "max_model_len": MAX_MODEL_LEN, "max_running": self.settings.scheduler.max_running}
        facts = {**sizes, "eos_ids": [1], "generation_defaults": {}, **facts}
        self.outbox.send(WorkerState("engine", True, generation, facts=facts))
        self.outbox.send(WorkerState("detokenizer", True, generation))
        self.wait(lambda: self.frontend.ready and self.frontend.facts == facts)

    def wait(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.002)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.outbox.send(Die())
            self.thread.join(10)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        engine = self.engine
        self.frontend = Frontend(3, engine.tokenizer, self.settings, engine, self._metrics, created=1700000000)
        app = create_app(self.frontend)
        self._up.set()
        run_frontend(self.frontend, app, self.listening, self._inbox)
        self._inbox.close()
