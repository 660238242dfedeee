"""Parsers by name, and which of them a chat template calls for.

A tool-call or reasoning format is one file with one class and one line in two tables here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from lightllm.errors import ConfigError
from lightllm.text.parsers.events import ParserEvent, TextDelta
from lightllm.text.parsers.hermes import CLOSE as CALL_CLOSE
from lightllm.text.parsers.hermes import OPEN as CALL_OPEN
from lightllm.text.parsers.hermes import HermesParser
from lightllm.text.parsers.think import CLOSE, OPEN, ThinkParser

__all__ = [
    "FORMAT_TAGS",
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "ChainParser",
    "OutputParser",
    "create_parser",
    "detect",
    "prompt_opens_reasoning",
]

P = TypeVar("P")


class OutputParser(Protocol):
    """Reads the text of one output as it arrives. Merged events do not depend on how the text was cut."""

    def push(self, delta: str) -> list[ParserEvent]:
        """Take new text, return the events that no later text can change."""
        ...

    def finish(self) -> list[ParserEvent]:
        """The output ended; return the rest. Call once."""
        ...


TOOL_PARSERS: dict[str, Callable[[], OutputParser]] = {"hermes": HermesParser}
REASONING_PARSERS: dict[str, Callable[[bool], OutputParser]] = {"think": ThinkParser}
"""Reasoning parsers take whether the prompt already opened the reasoning."""
FORMAT_TAGS = {"hermes": (CALL_OPEN, CALL_CLOSE), "think": (OPEN, CLOSE)}
"""What a parser looks for: it has to be in the text, whatever else of it is hidden."""


class PlainParser:
    """No format: everything is text."""

    def push(self, delta: str) -> list[ParserEvent]:
        return [TextDelta(delta)] if delta else []

    def finish(self) -> list[ParserEvent]:
        return []


class ChainParser:
    """Reasoning first; what is answer text goes on to the tool parser."""

    def __init__(self, reasoning: OutputParser, tool: OutputParser) -> None:
        self._reasoning = reasoning
        self._tool = tool

    def push(self, delta: str) -> list[ParserEvent]:
        return self._pass_on(self._reasoning.push(delta))

    def finish(self) -> list[ParserEvent]:
        return [*self._pass_on(self._reasoning.finish()), *self._tool.finish()]

    def _pass_on(self, events: list[ParserEvent]) -> list[ParserEvent]:
        passed: list[ParserEvent] = []
        for event in events:
            passed += self._tool.push(event.text) if isinstance(event, TextDelta) else [event]
        return passed


def create_parser(tool: str | None = None, reasoning: str | None = None, opened: bool = False) -> OutputParser:
    """A fresh parser for one output; None leaves that kind of output in the text.

    opened: the prompt ended inside the reasoning. Raises ConfigError for a name that no parser has.
    """
    tool_parser = None if tool is None else _look_up(TOOL_PARSERS, "tool_parser", tool)()
    reasoning_parser = None if reasoning is None else _look_up(REASONING_PARSERS, "reasoning_parser", reasoning)(opened)
    if tool_parser is not None and reasoning_parser is not None:
        return ChainParser(reasoning_parser, tool_parser)
    return tool_parser or reasoning_parser or PlainParser()


def detect(template_source: str | None) -> tuple[str | None, str | None]:
    """Names of the tool and the reasoning parser that a chat template's text calls for."""
    source = template_source or ""
    hermes = "<tool_call>" in source and not any(tag in source for tag in ("<function=", "<arg_key>"))
    think = OPEN in source or CLOSE in source
    return "hermes" if hermes else None, "think" if think else None


def prompt_opens_reasoning(prompt: str, reasoning: str | None, continued: str = "") -> bool:
    """Whether a rendered prompt ends inside the reasoning, so that the output begins there.

    continued: the message in which the prompt ends, for the model to go on with it
    """
    if reasoning != "think":
        return False
    begun = continued.lstrip().startswith(OPEN) and prompt.rfind(OPEN) > prompt.rfind(CLOSE)
    return begun or prompt.rstrip().endswith(OPEN)


def _look_up(table: dict[str, P], option: str, name: str) -> P:
    if name not in table:
        raise ConfigError(f"{option} {name!r} is not known; known are: {', '.join(sorted(table))}", param=option)
    return table[name]
