"""Tool calls and reasoning in a model's output, found while the text arrives. One file per format."""

from lightllm.text.parsers.events import (
    ParserEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
    merge_events,
)
from lightllm.text.parsers.registry import FORMAT_TAGS, OutputParser, create_parser, detect, prompt_opens_reasoning

__all__ = [
    "FORMAT_TAGS",
    "OutputParser",
    "ParserEvent",
    "ReasoningDelta",
    "TextDelta",
    "ToolCallArguments",
    "ToolCallStart",
    "create_parser",
    "detect",
    "merge_events",
    "prompt_opens_reasoning",
]
