"""The messages that travel between the processes of one server.

    frontend ──Submit, Abort──▶ engine ──Open, TokenBatch──▶ detokenizer ──TextBatch──▶ frontend
                                  ▲                               │
                                  └────────────Abort──────────────┘   a stop string was found

Frozen structs, encoded as msgpack arrays with a schema, never pickled. Token ids travel as packed int32 bytes.
Exactly one terminal message (a `finish` or an `error`) follows every accepted Submit.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lightllm.protocol.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why a request ended. The first two are what OpenAI clients see."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How a request wants to be served, beside what it wants said.

    `cache_salt` keeps prefix reuse within one salt, `share_prefix` off keeps out of the prefix cache. `tenant` is what
    fairness counts by; `ttft_target` and `tpot_target` are seconds to the first token and between tokens, and with
    `refuse_late` a request that cannot meet the former is refused at once.
    """

    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    ttft_target: float | None = None
    tpot_target: float | None = None
    refuse_late: bool = False
    share_prefix: bool = True


class Submit(Message, tag="submit", frozen=True):
    """A request to generate. `prompt` is packed int32; `seed` is always set here, drawn if the caller gave none.

    `bad_words` are token id sequences never to complete; `arrival` is seconds on the machine's monotonic clock. The
    fields after it are those of `Terms`.
    """

    request_id: int
    prompt: bytes
    params: SamplingParams
    max_tokens: int
    seed: int
    arrival: float
    bad_words: tuple[tuple[int, ...], ...] = ()
    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    ttft_target: float | None = None
    tpot_target: float | None = None
    refuse_late: bool = False
    share_prefix: bool = True


class Abort(Message, tag="abort", frozen=True):
    """Stop these requests now; an id that is unknown or finished is ignored. `complete`: a stop string ended them."""

    request_ids: tuple[int, ...]
    complete: bool = False


class AbortFrontend(Message, tag="abort_frontend", frozen=True):
    """A frontend died: stop everything it had submitted. Its successor, of the next generation, may have begun."""

    frontend: int
    generation: int = 0


class Open(Message, tag="open", frozen=True):
    """Engine to detokenizer: a request exists. Carries what turning ids into text needs."""

    request_id: int
    prompt_tail: bytes
    stop: tuple[str, ...]
    include_stop: bool
    min_tokens: int
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    detokenize: bool = True


class TopLogprobs(Message, frozen=True):
    """Log-probabilities (natural log) of one position: the chosen id, its rank, and the likeliest ids in order."""

    logprob: float
    rank: int
    top_ids: bytes
    top_values: bytes

    def pairs(self) -> list[tuple[int, float]]:
        ids = np.frombuffer(self.top_ids, np.int32)
        values = np.frombuffer(self.top_values, np.float32)
        return list(zip(ids.tolist(), values.tolist(), strict=True))


ErrorParts = tuple[str, ...]
"""An error on its way: code, message and, if it has one, the field at fault; `error_from_code` takes them."""


class TokenOutput(Message, frozen=True):
    """What one step gave one request. `finish` marks the terminal message; `error` says why it failed.

    `prompt_logprobs` arrive in pieces, in order; its first entry for position 0 is None.
    """

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TopLogprobs, ...] = ()
    finish: FinishReason | None = None
    stop_token: int | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[TopLogprobs | None, ...] = ()
    error: ErrorParts | None = None


class TokenBatch(Message, tag="tokens", frozen=True):
    """Everything one engine step has to say."""

    outputs: tuple[TokenOutput, ...]


class EngineStarted(Message, tag="engine_started", frozen=True):
    """A new engine process took over: whatever an earlier one had open is gone."""

    generation: int


class TextOutput(Message, frozen=True):
    """The detokenizer's word on one request: new text that will not change any more, and the ids behind it."""

    request_id: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TopLogprobs, ...] = ()
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[TopLogprobs | None, ...] = ()
    error: ErrorParts | None = None


class TextBatch(Message, tag="text", frozen=True):
    outputs: tuple[TextOutput, ...]


class Ready(Message, tag="ready", frozen=True):
    """Worker to supervisor: up. `facts` is what others may want to know (pool size, device, reasons)."""

    worker: str
    facts: dict[str, Any]


class StartFailed(Message, tag="start_failed", frozen=True):
    """Worker to supervisor: cannot start, and why, in words for a person."""

    worker: str
    code: str
    message: str


class WorkerState(Message, tag="worker_state", frozen=True):
    """Supervisor to frontends: a worker came up or went down."""

    worker: str
    up: bool
    generation: int
    message: str = ""
    facts: dict[str, Any] = {}


class Drain(Message, tag="drain", frozen=True):
    """Supervisor to a worker: refuse new work, finish what runs within `deadline_s`, then leave."""

    deadline_s: float


class Die(Message, tag="die", frozen=True):
    """Supervisor to a worker: leave now."""


EngineInbox = Submit | Abort | AbortFrontend | Drain | Die
DetokenizerInbox = Open | TokenBatch | EngineStarted | AbortFrontend | Drain | Die
FrontendInbox = TextBatch | WorkerState | EngineStarted | Drain | Die
SupervisorInbox = Ready | StartFailed

FRONTEND_SHIFT = 48
GENERATION_SHIFT = 40
_GENERATIONS = 1 << FRONTEND_SHIFT - GENERATION_SHIFT


def make_request_id(frontend: int, counter: int, generation: int = 0) -> int:
    """An id of its own among all processes: frontend index in the upper bits, its generation, a counter of 40 bits."""
    return (frontend << FRONTEND_SHIFT) | (generation % _GENERATIONS << GENERATION_SHIFT) | counter


def frontend_of(request_id: int) -> int:
    return request_id >> FRONTEND_SHIFT


def is_from(request_id: int, left: AbortFrontend) -> bool:
    """Whether the frontend that left, and not its successor, had submitted a request."""
    return request_id >> GENERATION_SHIFT == make_request_id(left.frontend, 0, left.generation) >> GENERATION_SHIFT


def pack_ids(ids: Any) -> bytes:
    """Token ids (list or integer array) as packed int32."""
    return np.asarray(ids, dtype=np.int32).tobytes()


def unpack_ids(data: bytes) -> NDArray[np.int32]:
    return np.frombuffer(data, dtype=np.int32)
