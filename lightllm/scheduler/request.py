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
"""

from __future__ import annotations

from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from lightllm.memory.radix_tree import Node
from lightllm.protocol.messages import Submit, unpack_ids

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
    """A submitted request. Only the scheduler changes it."""

    __slots__ = (
        "_tokens",
        "arrival",
        "computed_len",
        "known_len",
        "matched_len",
        "max_len",
        "node",
        "num_preemptions",
        "prompt_len",
        "reused_len",
        "row",
        "scored_len",
        "serial",
        "state",
        "submit",
        "valued_len",
    )

    def __init__(self, submit: Submit, serial: int) -> None:
        prompt = unpack_ids(submit.prompt)
        self.submit = submit
        self.serial = serial
        self.arrival = submit.arrival
        self.prompt_len = len(prompt)
        self.max_len = len(prompt) + submit.max_tokens
        self._tokens: Tokens = np.empty(self.max_len, np.int32)
        self._tokens[: len(prompt)] = prompt
        self.state = State.QUEUED
        self.row = NO_ROW
        self.node: Node | None = None
        self.matched_len = 0
        self.computed_len = 0
        self.known_len = self.valued_len = len(prompt)
        self.reused_len = 0
        self.scored_len = 0
        self.num_preemptions = 0

    @property
    def request_id(self) -> int:
        return self.submit.request_id

    @property
    def tokens(self) -> Tokens:
        """Tokens whose value is on the host."""
        return self._tokens[: self.valued_len]

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

    @property
    def shares_prefix(self) -> bool:
        """Whether it may use and feed the prefix tree; prompt log-probabilities need every position computed."""
        return self.submit.params.prompt_logprobs is None

    def move(self, state: State) -> None:
        """Change state; an illegal move asserts."""
        assert state in _ALLOWED[self.state], f"request {self.request_id}: {self.state.name} to {state.name}"
        self.state = state

    def append(self, token: int) -> None:
        """The value of the next launched token arrives."""
        assert self.valued_len < self.known_len, f"request {self.request_id}: a token that was never launched"
        self._tokens[self.valued_len] = token
        self.valued_len += 1

    def rewind(self) -> None:
        """Forget the row and everything computed, as preemption does; the tokens stay."""
        self.row = NO_ROW
        self.node = None
        self.matched_len = self.computed_len = 0

    def check(self) -> None:
        """Assert the order of lengths."""
        ordered = 0 <= self.matched_len <= self.computed_len <= self.known_len <= self.max_len
        assert ordered and self.valued_len <= self.known_len, (
            f"request {self.request_id}: matched {self.matched_len}, computed {self.computed_len}, "
            f"valued {self.valued_len}, known {self.known_len}, max {self.max_len}"
        )
