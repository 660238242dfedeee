"""The data of the generator: exchanges, conversations, evaluation cases, and the held-out split.

An exchange is one question and its one right answer. Its `key` names the problem behind the wording ("add 3 4"), and
a hash of the key decides, once and for every process, whether the problem belongs to training or to evaluation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

Message = dict[str, Any]

HELD_OUT_OF_256 = 10  # about 4 % of all problems are never trained on


def is_held_out(key: str) -> bool:
    """Whether the problem named by `key` belongs to evaluation."""
    return blake2b(key.encode(), digest_size=1).digest()[0] < HELD_OUT_OF_256


@dataclass(frozen=True, slots=True)
class Exchange:
    """One user message and its right answer; `thoughts` is what the model may think first."""

    task: str
    key: str
    user: str
    assistant: str
    thoughts: str | None = None

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.user}, {"role": "assistant", "content": self.assistant}]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole dialogue. `thinking` marks a last turn that shows its thoughts."""

    messages: list[Message]
    tools: list[Message] | None = None
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One evaluation prompt: messages up to the user's last word, and what the answer must be.

    `check` is one of exact, number, json, tool, ends (see evaluate.py); `group` refines the report.
    """

    task: str
    messages: list[Message]
    expected: str
    check: str = "exact"
    group: str = ""
    tools: list[Message] | None = None
    thinking: bool = False
    max_tokens: int = 160


def draw(make: Callable[[random.Random], Exchange], rng: random.Random, held_out: bool) -> Exchange:
    """Draw exchanges until one falls on the wanted side of the split."""
    while True:
        exchange = make(rng)
        if is_held_out(exchange.key) == held_out:
            return exchange
