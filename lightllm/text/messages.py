"""Chat messages as clients send them, made into what a chat template reads.

Clients write the same conversation in many ways: content as a string or as parts, arguments as a JSON string,
the `developer` role, two names for reasoning. A template knows one of each. Every malformed message raises
InvalidRequest that names its place, as in `messages[2].content`. This module knows no jinja2;
`TemplateTraits` says what matters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lightllm.errors import InvalidRequest

__all__ = ["TemplateTraits", "normalise_messages", "plain_data"]

STANDARD_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
TEXT_PARTS = frozenset(("text", "input_text", "output_text"))


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What a template's text tells about the messages it can read.

    roles: roles that the template names beside the standard ones
    knows_developer: it names the `developer` role
    iterates_parts: it loops over the parts of a content
    takes_string_content: it can print a content that is a string
    takes_string_arguments: it tests whether a call's arguments are a string
    prints_arguments: it prints a call's arguments as they are, so they must be text
    tests_none_content: it tests whether a content is none, so a null must reach it; others get an empty one
    """

    roles: frozenset[str] = frozenset()
    knows_developer: bool = False
    iterates_parts: bool = False
    takes_string_content: bool = True
    takes_string_arguments: bool = False
    prints_arguments: bool = False
    tests_none_content: bool = False


def normalise_messages(messages: Sequence[Mapping[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Copy messages into the form that a template with `traits` reads.

    Raises InvalidRequest that names the place.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list, not {_kind(messages)}", param="messages")
    if not messages:
        raise InvalidRequest("messages is empty; a chat needs at least 1 message", param="messages")
    return [_message(message, f"messages[{index}]", traits) for index, message in enumerate(messages)]


def plain_data(value: Any, place: str) -> Any:
    """Copy a value made of JSON types; raises InvalidRequest for anything else and for too deep nesting."""
    try:
        return _plain(value, place)
    except RecursionError:
        raise InvalidRequest(f"{place} is nested too deeply", param=place) from None


def _message(message: Any, place: str, traits: TemplateTraits) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(place, "an object", message)
    fields: dict[str, Any] = plain_data(message, place)
    fields = {name: value for name, value in fields.items() if value is not None}
    role = fields["role"] = _role(fields.get("role"), place, traits)
    calls = _tool_calls(fields.get("tool_calls", []), f"{place}.tool_calls", traits)
    if calls:
        fields["tool_calls"] = calls
    else:  # an empty list means none, but templates ask only whether there is a list
        fields.pop("tool_calls", None)
    _name_reasoning(fields, place)
    content = fields.get("content")
    if content is not None:
        fields["content"] = _content(content, role, f"{place}.content", traits)
    elif role != "assistant" or not (calls or "reasoning_content" in fields):
        raise _wrong(f"{place}.content", "a string or a list of parts", None)
    elif traits.tests_none_content:
        fields["content"] = None
    else:  # templates join and search a content without asking whether there is one
        fields["content"] = _content("" if traits.takes_string_content else [], role, f"{place}.content", traits)
    return fields


def _role(role: Any, place: str, traits: TemplateTraits) -> str:
    if not isinstance(role, str):
        raise _wrong(f"{place}.role", "a string", role)
    if role == "developer" and not traits.knows_developer:
        return "system"
    if role not in STANDARD_ROLES and role not in traits.roles:
        known = ", ".join(sorted(STANDARD_ROLES))
        message = f"{place}.role {role[:80]!r} is not known; it must be one of {known}"
        raise InvalidRequest(message, param=f"{place}.role")
    return role


def _content(content: Any, role: str, place: str, traits: TemplateTraits) -> Any:
    """A string, or parts where the template reads parts."""
    if isinstance(content, str):
        wrap = traits.iterates_parts and not traits.takes_string_content
        return [{"type": "text", "text": content}] if wrap else content
    if not isinstance(content, list):
        raise _wrong(place, "a string or a list of parts", content)
    texts = [_part_text(part, f"{place}[{index}]") for index, part in enumerate(content)]
    if traits.iterates_parts and (role != "tool" or not traits.takes_string_content):
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise _wrong(place, "an object", part)
    kind = part.get("type", "text")
    if not isinstance(kind, str):
        raise _wrong(f"{place}.type", "a string", kind)
    if kind not in TEXT_PARTS:
        message = f"{place}.type {kind[:80]!r} is not supported; this model reads text"
        raise InvalidRequest(message, param=f"{place}.type")
    if not isinstance(part.get("text"), str):
        raise _wrong(f"{place}.text", "a string", part.get("text"))
    return str(part["text"])


def _tool_calls(calls: Any, place: str, traits: TemplateTraits) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise _wrong(place, "a list", calls)
    return [_tool_call(call, f"{place}[{index}]", traits) for index, call in enumerate(calls)]


def _tool_call(call: Any, place: str, traits: TemplateTraits) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise _wrong(place, "an object", call)
    function = call.get("function")
    if not isinstance(function, dict):
        raise _wrong(f"{place}.function", "an object", function)
    if not isinstance(function.get("name"), str):
        raise _wrong(f"{place}.function.name", "a string", function.get("name"))
    arguments = _arguments(function.get("arguments"), f"{place}.function.arguments", traits)
    # templates may print it as JSON, as models write it; the official client puts the name last and adds what it parsed
    return {**call, "function": {"name": function["name"], "arguments": arguments}}


def _arguments(arguments: Any, place: str, traits: TemplateTraits) -> Any:
    """Arguments as an object, which most templates print with `tojson`, or as JSON text for those that do not."""
    if arguments is None or arguments == "":
        arguments = {}
    parsed = arguments
    if isinstance(arguments, str):
        try:
            parsed = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            if traits.takes_string_arguments:
                return arguments
            raise InvalidRequest(f"{place} is not valid JSON: {error}", param=place) from None
    if not isinstance(parsed, dict):
        raise _wrong(place, "an object, or a string that holds a JSON object", parsed)
    if traits.prints_arguments:
        return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return parsed


def _name_reasoning(fields: dict[str, Any], place: str) -> None:
    """Hand reasoning on as `reasoning_content`, and as `thinking` for the templates that read that."""
    name = next((name for name in REASONING_NAMES if name in fields), None)
    if name is None:
        return
    if not isinstance(fields[name], str):
        raise _wrong(f"{place}.{name}", "a string", fields[name])
    fields["reasoning_content"] = fields[name]
    fields.setdefault("thinking", fields[name])


def _plain(value: Any, place: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_key(key, place): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str):  # a subclass, such as an enumeration
        return str.__str__(value)
    raise _wrong(place, "a JSON value", value)


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise _wrong(f"a key of {place}", "a string", key)
    return key


def _wrong(place: str, expected: str, value: Any) -> InvalidRequest:
    return InvalidRequest(f"{place} must be {expected}, not {_kind(value)}", param=place)


def _kind(value: Any) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value)) or {int: "an integer", float: "a number"}.get(type(value), type(value).__name__)
