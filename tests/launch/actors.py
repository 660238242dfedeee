"""Workers that speak the real protocol and do next to nothing: what a supervisor can be tested with, without torch.

The frontend talks lines over TCP instead of HTTP:

    status          {"engine": [up, generation], ...}
    generate N      a line per token, then "done" or "failed: why"; or "refused: why"
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

from lightllm.errors import ConfigError
from lightllm.ipc import Poller
from lightllm.metrics import MetricSet, names
from lightllm.protocol.messages import (
    Abort,
    AbortFrontend,
    DetokenizerInbox,
    Die,
    Drain,
    EngineInbox,
    EngineStarted,
    FinishReason,
    FrontendInbox,
    Open,
    Submit,
    TextBatch,
    TextOutput,
    TokenBatch,
    TokenOutput,
    WorkerState,
    frontend_of,
    make_request_id,
    pack_ids,
)
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.workers.process import Worker

STEP_SECONDS = 0.005
PAUSE_TOKENS = 4321
"""A request for this many tokens makes the engine stand still for a while."""
PAUSE_SECONDS = 1.3
FACTS = {"vocab_size": 512, "max_model_len": 1 << 20, "eos_ids": [], "generation_defaults": {}}


class FakeEngine:
    """Gives every running request one token a step."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.left: dict[int, int] = {}
        self.leaving = False
        self.outbox = worker.sender("detokenizer", DetokenizerInbox)
        metrics = MetricSet(worker.board)
        self.steps = metrics.counter(names.ENGINE_STEPS)
        self.running = metrics.gauge(names.REQUESTS_RUNNING)

    def run(self) -> None:
        inboxes = self.worker.receivers(EngineInbox)
        poller = Poller(inboxes, [self.outbox])
        self.outbox.send(EngineStarted(self.worker.generation))
        self.worker.ready(FACTS)
        while not self.leaving:
            for inbox in poller.wait(STEP_SECONDS if self.left else None):
                for message in inbox.receive():
                    self.handle(message)
            self.step()

    def handle(self, message: EngineInbox) -> None:
        match message:
            case Submit():
                if message.max_tokens == PAUSE_TOKENS:
                    self.running.set(1)
                    time.sleep(PAUSE_SECONDS)
                self.left[message.request_id] = message.max_tokens
                self.outbox.send(Open(message.request_id, b"", (), False, 0, True, True, message.params.detokenize))
            case Abort():
                for request_id in message.request_ids:
                    self.left.pop(request_id, None)
            case AbortFrontend():
                self.left = {i: left for i, left in self.left.items() if frontend_of(i) != message.frontend}
            case Drain() | Die():
                self.leaving = True

    def step(self) -> None:
        if self.left:
            self.left = {request_id: left - 1 for request_id, left in self.left.items()}
            outputs = [
                TokenOutput(i, (7,), finish=None if left else FinishReason.LENGTH) for i, left in self.left.items()
            ]
            self.outbox.send(TokenBatch(tuple(outputs)))
            self.left = {request_id: left for request_id, left in self.left.items() if left}
            self.steps.inc()
        self.running.set(len(self.left))


def engine(worker: Worker) -> None:
    FakeEngine(worker).run()


def engine_with_child(worker: Worker) -> None:
    """An engine that has started a process of its own, as compilers do."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    FakeEngine(worker).run()


def deaf_engine(worker: Worker) -> None:
    worker.ready(FACTS)
    while True:
        time.sleep(60)


def refusing_engine(worker: Worker) -> None:
    raise ConfigError("the flag --frobnicate needs a number, got 'many'")


def broken_engine(worker: Worker) -> None:
    raise RuntimeError("the heat death of the universe")


def hanging_engine(worker: Worker) -> None:
    time.sleep(60)


def mortal_engine(worker: Worker) -> None:
    """Starts once; every later start fails."""
    if worker.generation:
        raise ConfigError("only one life")
    FakeEngine(worker).run()


def slow_engine(worker: Worker) -> None:
    time.sleep(1.0)
    FakeEngine(worker).run()


def detokenizer(worker: Worker) -> None:
    frontends = [worker.sender(f"frontend-{i}", FrontendInbox) for i in range(worker.settings.server.frontends)]
    inboxes = worker.receivers(DetokenizerInbox)
    poller = Poller(inboxes, frontends)
    worker.ready()
    while True:
        for inbox in poller.wait():
            for message in inbox.receive():
                if isinstance(message, Drain | Die):
                    return
                if isinstance(message, TokenBatch):
                    for output in message.outputs:
                        text = TextOutput(output.request_id, "x", output.token_ids, finish=output.finish)
                        frontends[frontend_of(output.request_id)].send(TextBatch((text,)))


class LineFrontend:
    """The part of a frontend that the supervisor cares for."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.to_engine = worker.sender("engine", EngineInbox)
        self.counter = count(int.from_bytes(os.urandom(5), "little"))
        self.live: dict[int, asyncio.Queue[str]] = {}
        self.states: dict[str, tuple[bool, int]] = {}
        self.draining: Drain | None = None

    async def run(self) -> None:
        assert self.worker.listening_socket is not None
        server = await asyncio.start_server(self.talk, sock=self.worker.listening_socket)
        self.worker.ready()
        inbox = self.worker.inbox(FrontendInbox)
        deadline = None
        while True:
            try:
                async with asyncio.timeout(0.01 if self.draining else None):
                    for message in await inbox.next():
                        self.receive(message)
                        if isinstance(message, Die):
                            return
            except TimeoutError:
                pass
            if self.draining is not None:
                deadline = deadline or time.monotonic() + self.draining.deadline_s
                if not self.live or time.monotonic() > deadline:
                    break
        for queue in self.live.values():
            queue.put_nowait("failed: draining")
        await asyncio.sleep(0.05)
        server.close()

    def receive(self, message: FrontendInbox) -> None:
        match message:
            case TextBatch():
                for output in message.outputs:
                    if queue := self.live.get(output.request_id):
                        queue.put_nowait("token")
                        if output.finish is not None:
                            queue.put_nowait("done")
            case WorkerState():
                self.states[message.worker] = (message.up, message.generation)
                if not message.up:
                    if message.worker != "engine" and self.live:
                        self.to_engine.send(Abort(tuple(self.live)))
                    for queue in self.live.values():
                        queue.put_nowait(f"failed: the {message.worker} {message.message}")
            case Drain():
                self.draining = message

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await reader.readline()).decode().split()
        if words and words[0] == "status":
            writer.write((json.dumps(self.states) + "\n").encode())
        elif words:
            await self.generate(int(words[1]), writer)
        writer.close()

    async def generate(self, tokens: int, writer: asyncio.StreamWriter) -> None:
        up = [state[0] for state in self.states.values()]
        if self.draining or up != [True, True]:
            writer.write(b"refused: draining\n" if self.draining else b"refused: not ready\n")
            return
        request_id = make_request_id(self.worker.index, next(self.counter))
        queue = self.live[request_id] = asyncio.Queue()
        params = SamplingParams(max_tokens=tokens)
        self.to_engine.send(Submit(request_id, pack_ids([1]), params, tokens, 0, time.monotonic()))
        word = ""
        while not word.startswith(("done", "failed")):
            word = await queue.get()
            writer.write((word + "\n").encode())
        del self.live[request_id]


def frontend(worker: Worker) -> None:
    asyncio.run(LineFrontend(worker).run())


def host() -> int:
    """The supervisor as a program: `python actors.py OPTIONS`, options as a JSON object."""
    from lightllm import launch, logs
    from lightllm.config.settings import ModelSettings, ServerSettings, Settings
    from lightllm.launch import backoff

    options = json.loads(sys.argv[1])
    backoff.FIRST_SECONDS = options.get("first_seconds", backoff.FIRST_SECONDS)
    backoff.MOST_FAILURES = options.get("most_failures", backoff.MOST_FAILURES)
    entries = {
        "frontend_entry": "actors:frontend",
        "engine_entry": "actors:engine",
        "detokenizer_entry": "actors:detokenizer",
        **options.get("entries", {}),
    }
    server = ServerSettings(port=0, **options.get("server", {}))
    model = ModelSettings(model=options.get("model", str(Path(__file__).parent)), served_model_name=("fake",))
    settings = Settings(model=model, server=server)
    logs.configure("debug")
    topology = launch.serving_topology(server.frontends, **entries)
    longest = options.get("longest_step_seconds", 60.0)
    listener = launch.listen(server.host, server.port)
    code = launch.Supervisor(settings, topology, listener, log_level="debug", longest_step_seconds=longest).run()
    assert "torch" not in sys.modules, "the supervisor loaded torch"
    return code


if __name__ == "__main__":
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    sys.exit(host())
