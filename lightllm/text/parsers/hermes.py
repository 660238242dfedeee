"""Tool calls in the Hermes format (Hermes 2 Pro, Qwen2.5, Qwen3): JSON between tags.

    text <tool_call> {"name": "f", "arguments": { ... }} </tool_call> text
    ├ text ┤         ├──── header ────────────┤├ streamed ┤├ closing ┤

A header in the usual order lets the arguments leave while they are written. Anything else (another key order,
further keys, arguments as a string) waits for the closing tag and is then read as a whole; what is no call
comes out as the plain text it was. Arguments that leave early leave as written: only their nesting and
strings are followed, so a model that writes broken JSON there sends broken JSON; a tag outside a string ends them,
whatever bracket is missing. White space next to a call belongs to the format and is dropped, but for some of it between
two texts.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from lightllm.text.parsers.events import ParserEvent, TextDelta, ToolCallArguments, ToolCallStart
from lightllm.text.parsers.held import held_length

__all__ = ["HermesParser"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# a longer name waits for the closing tag: read again with every piece, one without an end would take minutes
_HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){1,256}")\s*,\s*"arguments"\s*:\s*(?=\{)')
_OUTSIDE = re.compile(r'["{}\[\]<]')
_INSIDE = re.compile(r'["\\]')

_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])


class HermesParser:
    """Finds the tool calls of one output.

    State: `_held`, the text not yet given; in `arguments` also the nesting depth and whether a string is
    open.
    """

    def __init__(self) -> None:
        self._state: Literal["text", "body", "arguments", "closing"] = "text"
        self._held = ""
        self._count = 0
        self._depth = 0
        self._in_string = False
        self._searched = 0  # no closing tag begins before this place of the held body
        self._space = ""  # white space before the tag, given back if the tag holds no call
        self._after_call = False
        self._has_text = False

    def push(self, delta: str) -> list[ParserEvent]:
        """Events that no later text can change."""
        self._held += delta
        events: list[ParserEvent] = []
        steps = {
            "text": self._text,
            "body": self._body,
            "arguments": self._arguments,
            "closing": self._closing,
        }
        while steps[self._state](events):
            pass
        return events

    def finish(self) -> list[ParserEvent]:
        """The output ended, perhaps inside a call: give what was held back."""
        events: list[ParserEvent] = []
        held, self._held = self._held, ""
        if self._state == "text" and not (self._after_call and held.isspace()):
            self._give(held, events)
        elif self._state == "body" and not self._whole_call(held, events):
            self._give(self._space + OPEN + held, events)
        elif self._state == "arguments" and held:
            events.append(ToolCallArguments(self._count - 1, held))
        return events

    def _text(self, events: list[ParserEvent]) -> bool:
        """Give text up to the next tag, without the white space that touches it."""
        start = self._held.find(OPEN)
        certain = start if start >= 0 else len(self._held) - held_length(self._held, OPEN)
        shown = self._held[:certain].rstrip()
        if shown:
            if self._after_call:
                bare = shown.lstrip()
                between = shown[: len(shown) - len(bare)] or self._space
                shown = between + bare if self._has_text else bare
            self._after_call = False
            self._give(shown, events)
            self._held = self._held[len(self._held[:certain].rstrip()) :]
        if start < 0:
            return False
        self._space, _, self._held = self._held.partition(OPEN)
        self._state, self._searched = "body", 0
        return True

    def _body(self, events: list[ParserEvent]) -> bool:
        """Wait for a header in the usual order, or for the closing tag."""
        end = self._held.find(CLOSE, self._searched)
        header = _HEADER.match(self._held, 0, len(self._held) if end < 0 else end)
        if header is not None and self._begin(header[1], events):
            self._held = self._held[header.end() :]
            self._state, self._depth, self._in_string = "arguments", 0, False
            return True
        self._searched = max(0, len(self._held) - len(CLOSE) + 1)
        if end < 0:
            return False
        body, self._held = self._held[:end], self._held[end + len(CLOSE) :]
        if not self._whole_call(body, events):
            self._give(self._space + OPEN + body + CLOSE, events)
            self._after_call = False
        self._state = "text"
        return True

    def _arguments(self, events: list[ParserEvent]) -> bool:
        """Give arguments up to the bracket that closes them, or to a tag."""
        end = self._scan()
        if self._held[:end]:
            events.append(ToolCallArguments(self._count - 1, self._held[:end]))
        self._held = self._held[end:]
        return self._state == "closing"

    def _scan(self) -> int:
        """Follow nesting and strings through the held text; return how much of it is arguments."""
        text, place = self._held, 0
        while True:
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, place)
            if found is None:
                return len(text)
            place, mark = found.end(), found[0]
            if mark == "\\":
                if place == len(text):
                    return place - 1  # wait for the escaped character
                place += 1
            elif mark == '"':
                self._in_string = not self._in_string
            elif mark == "<":
                rest = text[place - 1 : place - 1 + len(CLOSE)]
                if rest.startswith((CLOSE, OPEN)):
                    self._state = "closing"
                    return place - 1
                if CLOSE.startswith(rest) or OPEN.startswith(rest):
                    return place - 1  # wait for the rest of the tag
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth == 0:
                    self._state = "closing"
                    return place

    def _closing(self, events: list[ParserEvent]) -> bool:
        """Pass over the rest of the call; a new opening tag ends it too, as weak models forget to close."""
        ends = [(place, tag) for tag in (CLOSE, OPEN) if (place := self._held.find(tag)) >= 0]
        if not ends:
            keep = max(held_length(self._held, CLOSE), held_length(self._held, OPEN))
            self._held = self._held[len(self._held) - keep :]
            return False
        place, tag = min(ends)
        self._held = self._held[place + (len(CLOSE) if tag == CLOSE else 0) :]
        self._state, self._after_call = "text", True
        return True

    def _begin(self, name: str, events: list[ParserEvent]) -> bool:
        """Start a call, unless its name (a JSON string) is malformed."""
        try:
            events.append(ToolCallStart(self._count, msgspec.json.decode(name, type=str)))
        except msgspec.DecodeError:
            return False
        self._count += 1
        return True

    def _whole_call(self, body: str, events: list[ParserEvent]) -> bool:
        """Read a complete body; False if it is no call."""
        try:
            fields = _raw.decode(body.strip())
            name = msgspec.json.decode(fields["name"], type=str)
            arguments = _argument_text(fields.get("arguments", fields.get("parameters", msgspec.Raw(b"{}"))))
        except (msgspec.DecodeError, KeyError, UnicodeError, RecursionError):
            return False
        if arguments is None or not name:
            return False
        events += [ToolCallStart(self._count, name), ToolCallArguments(self._count, arguments)]
        self._count += 1
        self._after_call = True
        return True

    def _give(self, text: str, events: list[ParserEvent]) -> None:
        if text:
            events.append(TextDelta(text))
            self._has_text = True


def _argument_text(raw: msgspec.Raw) -> str | None:
    """Arguments as JSON text: an object as written, one inside a string unwrapped, null as {}; else None."""
    value: Any = msgspec.json.decode(raw)
    text = bytes(raw).decode()
    if isinstance(value, str):
        text, value = value, msgspec.json.decode(value or "{}")
    if value is None:
        return "{}"
    return (text or "{}") if isinstance(value, dict) else None
