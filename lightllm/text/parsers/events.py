"""What a parser finds in a model's output: plain text, reasoning, and tool calls in pieces."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ParserEvent", "ReasoningDelta", "TextDelta", "ToolCallArguments", "ToolCallStart", "merge_events"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text of the reasoning before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call of the function `name`; `index` counts the calls of one output from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next piece of a call's arguments; the pieces join to the JSON text that the model wrote."""

    index: int
    text: str


ParserEvent = TextDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


def merge_events(events: list[ParserEvent]) -> list[ParserEvent]:
    """Join neighbours of one kind and drop empty pieces, so that cuts in the text leave no trace."""
    merged: list[ParserEvent] = []
    for event in events:
        if not isinstance(event, ToolCallStart) and not event.text:
            continue
        last = merged[-1] if merged else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            merged[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            merged[-1] = ReasoningDelta(last.text + event.text)
        elif isinstance(event, ToolCallArguments) and isinstance(last, ToolCallArguments) and event.index == last.index:
            merged[-1] = ToolCallArguments(event.index, last.text + event.text)
        else:
            merged.append(event)
    return merged
