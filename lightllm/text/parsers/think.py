"""Reasoning between `<think>` and `</think>` at the start of an output (DeepSeek R1, Qwen3, QwQ and others).

    <think>\\n reasoning \\n</think>\\n\\n answer
    ^ also when the prompt wrote it: `opened`

Line breaks next to the tags belong to the format and are dropped, as the models' own templates drop them when
they print an earlier turn. A `<think>` later in the answer is plain text. Without `</think>` everything is
reasoning.
"""

from __future__ import annotations

from typing import Literal

from lightllm.text.parsers.events import ParserEvent, ReasoningDelta, TextDelta
from lightllm.text.parsers.held import held_length

__all__ = ["ThinkParser"]

OPEN, CLOSE = "<think>", "</think>"


class ThinkParser:
    """Splits reasoning from the answer. `opened`: the prompt ended inside the think block."""

    def __init__(self, opened: bool = False) -> None:
        self._opened = opened
        self._state: Literal["start", "reasoning", "answer"] = "start"
        self._held = ""
        self._drops_breaks = False  # line breaks after a tag are dropped until other text comes

    def push(self, delta: str) -> list[ParserEvent]:
        """Events that no later text can change."""
        self._held += delta
        events: list[ParserEvent] = []
        if self._state == "start":
            self._start()
        if self._state == "reasoning":
            self._reason(events)
        if self._state == "answer":
            self._answer(events)
        return events

    def finish(self) -> list[ParserEvent]:
        """The output ended: give what was held back."""
        held, self._held = self._held, ""
        if self._state == "reasoning" or (self._state == "start" and self._opened):
            drops = self._drops_breaks or self._state == "start"
            held = held.strip("\n") if drops else held.rstrip("\n")
            return [ReasoningDelta(held)] if held else []
        return [TextDelta(held)] if held else []

    def _start(self) -> None:
        """Wait until it is clear whether the output begins with the tag."""
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._state, self._held = "reasoning", text[len(OPEN) :]
            self._drops_breaks = True
        elif not OPEN.startswith(text):
            self._state = "reasoning" if self._opened else "answer"
            self._drops_breaks = self._opened

    def _reason(self, events: list[ParserEvent]) -> None:
        self._drop_breaks()
        end = self._held.find(CLOSE)
        if end >= 0:
            text, self._held = self._held[:end].rstrip("\n"), self._held[end + len(CLOSE) :]
            self._state, self._drops_breaks = "answer", True
        else:
            certain = len(self._held) - held_length(self._held, CLOSE)
            certain = len(self._held[:certain].rstrip("\n"))
            text, self._held = self._held[:certain], self._held[certain:]
        if text:
            events.append(ReasoningDelta(text))

    def _answer(self, events: list[ParserEvent]) -> None:
        self._drop_breaks()
        if self._held:
            events.append(TextDelta(self._held))
            self._held = ""

    def _drop_breaks(self) -> None:
        if self._drops_breaks:
            self._held = self._held.lstrip("\n")
            self._drops_breaks = not self._held
