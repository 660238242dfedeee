"""One request inside the scheduler: its tokens, its lengths, its state.

0 <= matched_len <= computed_len <= known_len <= max_len

matched    leading tokens whose slots the prefix tree owns
computed   tokens whose KV exists, or will once the launched steps have run
known      prompt and generated tokens; a sampled token counts from the launch of its step,
           its value follows with the step's result: `valued_len` tokens have their value on the host

QUEUED ──▶ PREFILL ──▶ DECODE ──▶ FINISHED
   ▲          │           │          ▲
   └──────────┴───────────┘          └── from any state (abort, error)
      preempted: computed again later

The lengths live in the arrays of `Lengths`, at this request's index; the properties here read and write them.
"""

from __future__ import annotations

from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from lightllm.memory.radix_tree import Node
from lightllm.protocol.messages import Submit, unpack_ids
from lightllm.scheduler.lengths import Lengths

Tokens = NDArray[np.int32]

NO_ROW = -1


class State(Enum):
    QUEUED = auto()
    PREFILL = auto()
    DECODE = auto()
    FINISHED = auto()


_ALLOWED = {
    State.QUEUED: {State.PREFILL, State.FINISHED},
    State.PREFILL: {State.DECODE, State.QUEUED, State.FINISHED},
    State.DECODE: {State.QUEUED, State.FINISHED},
    State.FINISHED: set(),
}


class Request:
    """A submitted request. Only the scheduler changes it. `tenant` is a number the scheduler gave its name."""

    __slots__ = (
        "_lengths",
        "arrival",
        "begun_at",
        "buffer",
        "index",
        "max_len",
        "node",
        "num_overtaken",
        "num_preemptions",
        "opened_step",
        "prompt_len",
        "request_id",
        "scored_len",
        "serial",
        "shares_prefix",
        "state",
        "submit",
        "tenant",
    )

    def __init__(self, submit: Submit, serial: int, lengths: Lengths | None = None, tenant: int = 0) -> None:
        prompt = unpack_ids(submit.prompt)
        self.submit = submit
        self.request_id = submit.request_id
        self.serial = serial
        self.tenant = tenant
        self.arrival = submit.arrival
        self.begun_at: float | None = None
        """When it first ran."""
        self.prompt_len = len(prompt)
        self.max_len = len(prompt) + submit.max_tokens
        self.buffer: Tokens = np.empty(self.max_len, np.int32)
        self.buffer[: len(prompt)] = prompt
        self.state = State.QUEUED
        self.node: Node | None = None
        self.scored_len = 0
        self.num_preemptions = 0
        self.num_overtaken = 0
        self.opened_step = 0
        self.shares_prefix = submit.share_prefix and submit.params.prompt_logprobs is None
        """Whether it uses and feeds the prefix tree; prompt log-probabilities need every position computed."""
        self._lengths = Lengths() if lengths is None else lengths
        self._write_lengths()

    def _write_lengths(self) -> None:
        lengths, params = self._lengths, self.submit.params
        index = self.index = lengths.open()
        lengths.matched[index] = lengths.computed[index] = lengths.promised[index] = lengths.reused[index] = 0
        lengths.known[index] = lengths.valued[index] = lengths.prompt[index] = self.prompt_len
        lengths.limit[index] = self.max_len
        lengths.row[index] = NO_ROW
        lengths.serial[index] = self.serial
        lengths.request_id[index] = self.request_id
        lengths.owner[index] = self
        lengths.tenant[index] = self.tenant
        target = self.submit.tpot_target
        lengths.tpot_target[index] = np.inf if target is None else target
        lengths.stops_at_eos[index] = not params.ignore_eos
        lengths.has_stops[index] = bool(params.stop_token_ids)

    @property
    def matched_len(self) -> int:
        return int(self._lengths.matched[self.index])

    @matched_len.setter
    def matched_len(self, value: int) -> None:
        self._lengths.matched[self.index] = value

    @property
    def computed_len(self) -> int:
        return int(self._lengths.computed[self.index])

    @computed_len.setter
    def computed_len(self, value: int) -> None:
        self._lengths.computed[self.index] = value

    @property
    def known_len(self) -> int:
        return int(self._lengths.known[self.index])

    @known_len.setter
    def known_len(self, value: int) -> None:
        self._lengths.known[self.index] = value

    @property
    def valued_len(self) -> int:
        return int(self._lengths.valued[self.index])

    @valued_len.setter
    def valued_len(self, value: int) -> None:
        self._lengths.valued[self.index] = value

    @property
    def promised_len(self) -> int:
        """Leading tokens that another prompt in progress is about to give to the prefix tree."""
        return int(self._lengths.promised[self.index])

    @promised_len.setter
    def promised_len(self, value: int) -> None:
        self._lengths.promised[self.index] = value

    @property
    def reused_len(self) -> int:
        """Leading tokens that the prefix tree gave when the request was first admitted."""
        return int(self._lengths.reused[self.index])

    @reused_len.setter
    def reused_len(self, value: int) -> None:
        self._lengths.reused[self.index] = value

    @property
    def row(self) -> int:
        return int(self._lengths.row[self.index])

    @row.setter
    def row(self, value: int) -> None:
        self._lengths.row[self.index] = value

    @property
    def tokens(self) -> Tokens:
        """Tokens whose value is on the host."""
        return self.buffer[: self.valued_len]

    @property
    def num_generated(self) -> int:
        """Generated tokens, those still without a value included."""
        return self.known_len - self.prompt_len

    @property
    def num_pending(self) -> int:
        """Tokens launched whose value has not arrived."""
        return self.known_len - self.valued_len

    @property
    def todo(self) -> int:
        """Known tokens whose KV is still to be computed."""
        return self.known_len - self.computed_len

    @property
    def complete(self) -> bool:
        """Everything this request may generate has been launched."""
        return self.known_len == self.max_len and (self.num_generated > 0 or self.todo == 0)

    def move(self, state: State) -> None:
        """Change state; an illegal move asserts."""
        assert state in _ALLOWED[self.state], f"request {self.request_id}: {self.state.name} to {state.name}"
        self.state = state
        self._lengths.prefilling[self.index] = state is State.PREFILL
        self._lengths.decoding[self.index] = state is State.DECODE

    def append(self, token: int) -> None:
        """The value of the next launched token arrives."""
        valued = self.valued_len
        assert valued < self.known_len, f"request {self.request_id}: a token that was never launched"
        self.buffer[valued] = token
        self.valued_len = valued + 1

    def rewind(self) -> None:
        """Forget the row and everything computed, as preemption does; the tokens stay."""
        self.row = NO_ROW
        self.node = None
        self.matched_len = self.computed_len = self.promised_len = 0

    def close(self) -> None:
        """Give the index back; the lengths must not be read any more."""
        self._lengths.close(self.index)

    def check(self) -> None:
        """Assert the order of lengths."""
        ordered = 0 <= self.matched_len <= self.computed_len <= self.known_len <= self.max_len
        assert ordered and self.valued_len <= self.known_len, (
            f"request {self.request_id}: matched {self.matched_len}, computed {self.computed_len}, "
            f"valued {self.valued_len}, known {self.known_len}, max {self.max_len}"
        )
