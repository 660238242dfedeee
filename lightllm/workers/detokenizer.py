"""The third stage: token ids from the engine become text for the frontends, and stop strings end requests.

    engine ──Open, TokenBatch──▶ detokenizer ──TextBatch──▶ frontend i
    engine ◀──────Abort──────────────┘ a stop string was found

It knows which requests are open and batches what it has to say: one message per frontend and wake-up, one output per
request in it. How ids become text is `text_stream`'s business. The same loop runs in the detokenizer process and, turn
by turn, in the offline API.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from lightllm.errors import Backpressure, EngineError, ProtocolError, WorkerDied
from lightllm.ipc import Poller, Receiver, Sender
from lightllm.ipc.waiting import Flushable
from lightllm.protocol.messages import (
    Abort,
    AbortFrontend,
    DetokenizerInbox,
    Die,
    Drain,
    EngineInbox,
    EngineStarted,
    ErrorParts,
    FinishReason,
    Open,
    TextBatch,
    TextOutput,
    TokenBatch,
    TokenOutput,
    frontend_of,
    is_from,
)
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.text_stream import TextStream

ToFrontend = Callable[[int, TextBatch], None]
"""Sends a batch to the frontend of that index; raises Backpressure or ProtocolError like a sender."""

RETRY_SECONDS = 0.05

logger = logging.getLogger(__name__)


class DetokenizerLoop:
    """Open requests and what is to be said of them.

    `handle` takes a message in and `flush` says what came of it; call it after each batch of messages. A fault in one
    request ends that request only.
    """

    def __init__(self, tokenizer: Tokenizer, to_frontend: ToFrontend, to_engine: Sender[EngineInbox]) -> None:
        self._tokenizer = tokenizer
        self._to_frontend = to_frontend
        self._to_engine = to_engine
        self._streams: dict[int, TextStream] = {}
        self._touched: dict[int, TextStream] = {}
        self._failures: list[TextOutput] = []
        self._aborts: dict[int, bool] = {}
        """Requests that the engine is to stop, and whether a stop string ended them."""
        self._leaving = False

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def run(self, inboxes: Sequence[Receiver[DetokenizerInbox]], outboxes: Sequence[Flushable] = ()) -> None:
        """Serve until told to leave. `outboxes` are the senders behind this loop, flushed while it sleeps."""
        poller = Poller(inboxes, outboxes)
        while not self._leaving:
            for inbox in poller.wait(RETRY_SECONDS if self._aborts or self._failures else None):
                for message in inbox.receive():
                    self.handle(message)
            self.flush()

    def handle(self, message: DetokenizerInbox) -> None:
        """Take in one message. Never raises for what a message says."""
        match message:
            case TokenBatch():
                for output in message.outputs:
                    self._take(output)
            case Open():
                self._open(message)
            case EngineStarted():
                self._forget_all()
            case AbortFrontend():
                self._forget_frontend(message)
            case Die() | Drain():
                self._leaving = True

    def flush(self) -> None:
        """Send what the messages since the last call gave: text to frontends, aborts to the engine."""
        if self._touched or self._failures:
            batches: dict[int, list[TextOutput]] = {}
            for stream in self._touched.values():
                batches.setdefault(frontend_of(stream.request_id), []).append(stream.give())
            for failure in self._failures:
                batches.setdefault(frontend_of(failure.request_id), []).append(failure)
            self._touched, self._failures = {}, []
            for frontend, outputs in batches.items():
                self._deliver(frontend, outputs)
        if self._aborts:
            self._send_aborts()

    def _open(self, message: Open) -> None:
        try:
            self._streams[message.request_id] = TextStream(self._tokenizer, message)
        except Exception as error:
            logger.exception("request %d cannot be turned into text", message.request_id)
            self._failures.append(_failure(message.request_id, _explain(error)))
            self._aborts[message.request_id] = False

    def _take(self, output: TokenOutput) -> None:
        """One request's share of a step; of a request that has ended or was given up, nothing is said."""
        request_id = output.request_id
        stream = self._streams.get(request_id)
        if stream is None:
            return
        self._touched[request_id] = stream
        try:
            stream.take(output)
        except Exception as error:
            logger.exception("the output of request %d cannot be turned into text", request_id)
            stream.fail(_explain(error))
            stream.cut_short = False
            if output.finish is None:
                self._aborts[request_id] = False
        if stream.ended:
            del self._streams[request_id]
            if stream.cut_short:
                self._aborts[request_id] = True

    def _forget_all(self) -> None:
        """A new engine: what an earlier one had open will never end by itself."""
        message = "the engine was restarted while it served the request"
        for request_id, stream in self._streams.items():
            stream.fail((WorkerDied.code, message))
            self._touched[request_id] = stream
        self._streams.clear()
        self._aborts.clear()

    def _forget_frontend(self, left: AbortFrontend) -> None:
        for streams in (self._streams, self._touched):
            for request_id in [request_id for request_id in streams if is_from(request_id, left)]:
                del streams[request_id]
        self._failures = [failure for failure in self._failures if not is_from(failure.request_id, left)]

    def _deliver(self, frontend: int, outputs: list[TextOutput]) -> None:
        try:
            self._to_frontend(frontend, TextBatch(tuple(outputs)))
        except ProtocolError as error:  # larger than any message may be
            if len(outputs) > 1:
                for output in outputs:
                    self._deliver(frontend, [output])
            elif outputs[0].error is None:
                self._give_up(outputs)
                self._deliver(frontend, [_failure(outputs[0].request_id, (error.code, error.message))])
        except Backpressure as error:
            fresh = [output for output in outputs if output.error is None]
            if fresh:
                logger.error("frontend %d does not read; %d requests are given up: %s", frontend, len(fresh), error)
            self._give_up(outputs)
            self._failures += [output for output in outputs if output.error is not None]  # they go with a later flush
            self._failures += [_failure(output.request_id, (error.code, error.message)) for output in fresh]

    def _give_up(self, outputs: list[TextOutput]) -> None:
        for output in outputs:
            if self._streams.pop(output.request_id, None) is not None:
                self._aborts[output.request_id] = False

    def _send_aborts(self) -> None:
        for complete in (False, True):
            request_ids = tuple(request_id for request_id, ended in self._aborts.items() if ended is complete)
            if not request_ids:
                continue
            try:
                self._to_engine.send(Abort(request_ids, complete))
            except Backpressure:
                return  # they go with the next flush; until then their tokens are ignored
            for request_id in request_ids:
                del self._aborts[request_id]


def _failure(request_id: int, error: ErrorParts) -> TextOutput:
    return TextOutput(request_id, "", finish=FinishReason.ERROR, error=error)


def _explain(error: Exception) -> ErrorParts:
    return EngineError.code, f"the tokens of the request could not be turned into text ({type(error).__name__})"
