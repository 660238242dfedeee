"""Request bodies: bytes within a limit, strict JSON, then a schema. Every failure is a RequestError that says where.

Stricter than most parsers: NaN, infinities, repeated keys, invalid UTF-8 and lone surrogates are refused.
"""

from __future__ import annotations

import asyncio
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from lightllm.errors import BodyTooLarge, InvalidRequest, RequestError, RequestTimeout, UnsupportedMediaType
from lightllm.server.context import context_of

T = TypeVar("T")

WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_VALIDATION = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$?\.?(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<expected>[^`]*)`, got `(?P<given>[^`]*)`$")
_LIMITED = re.compile(r"^Expected `(?P<kind>[^`]*)` (?P<limit>[^`]*)$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>[^`]*)`$")


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body.

    Raises UnsupportedMediaType, BodyTooLarge and RequestTimeout (while reading, not after), or InvalidRequest.
    """
    _check_content_type(request.headers.get("content-type"))
    _check_content_encoding(request.headers.get("content-encoding"))
    frontend = context_of(request).frontend
    server = frontend.settings.server
    body = await _read(request, server.max_body_bytes, server.upload_seconds)
    return await frontend.offload(len(body) >> 6, parse_object, body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Strict JSON; raises InvalidRequest unless it is one object."""
    body = body.removeprefix(BOM_UTF8)  # editors and shells on Windows begin files with it
    if not body.strip():
        raise InvalidRequest("the request has no body; a JSON object is expected")
    try:
        msgspec.json.decode(body)
        value = json.loads(body.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: {error.reason}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {_plain_reason(str(error))}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def convert(value: Any, schema: type[T], place: str = "") -> T:
    """`value` (JSON types) as `schema`; `place` is the path of `value` in the body.

    Raises InvalidRequest that names the field at fault, what was expected and what was given.
    """
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise readable(error, place) from None
    except RecursionError:
        raise InvalidRequest(f"{place or 'the body'} is nested too deeply") from None


def refuse(body: Mapping[str, Any], refusals: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Raise InvalidRequest for a field that is known but not supported, unless its value asks for nothing.

    refusals: field -> values that change nothing (null always does), and the reason to give
    """
    for name in body.keys() & refusals.keys():
        neutral, reason = refusals[name]
        value = body[name]
        if value is not None and not any(value == same and type(value) is type(same) for same in neutral):
            raise InvalidRequest(f"{name} is not supported: {reason}", param=name)


@contextmanager
def in_terms_of(names: Mapping[str, str]) -> Iterator[None]:
    """Mistakes found within name the fields as the client did. names: field of ours -> the client's."""
    try:
        yield
    except RequestError as error:
        if error.param is None or error.param not in names:
            raise
        message = error.message
        for ours, theirs in names.items():
            if ours != "prompt":  # there it is a word, not a name
                message = re.sub(rf"\b{ours}\b", theirs, message)
        raise type(error)(message, param=names[error.param]) from None


def readable(error: msgspec.ValidationError, place: str = "") -> InvalidRequest:
    """A msgspec error in words for a person, with the field's path."""
    parts = _VALIDATION.match(str(error))
    what, path = (parts["what"], parts["path"] or "") if parts else (str(error), "")
    path = ".".join(part for part in (place, path) if part).replace(".[", "[")
    if missing := (_MISSING.match(what) or _UNKNOWN.match(what)):
        name = ".".join(part for part in (path, missing["name"]) if part)
        verb = "is required" if missing.re is _MISSING else "is not a known field"
        return InvalidRequest(f"{name} {verb}", param=name)
    subject = path or "the body"
    if wrong := _EXPECTED.match(what):
        expected = " or ".join(WORDS.get(word, word) for word in wrong["expected"].split(" | "))
        return InvalidRequest(
            f"{subject} must be {expected}, not {WORDS.get(wrong['given'], wrong['given'])}", param=path or None
        )
    if limited := _LIMITED.match(what):
        kind = WORDS.get(limited["kind"].removesuffix(" | null"), limited["kind"])
        return InvalidRequest(f"{subject} must be {kind} {limited['limit']}", param=path or None)
    return InvalidRequest(f"{subject}: {what[:200]}", param=path or None)


def _check_content_type(value: str | None) -> None:
    """A missing content type is taken for JSON."""
    if not value:
        return
    kind = value.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(f"the content type must be application/json, not {value[:80]!r}")


def _check_content_encoding(value: str | None) -> None:
    """Compressed bytes would be called malformed JSON."""
    if value and value.strip().lower() != "identity":
        raise UnsupportedMediaType(f"the body must not be compressed, but its content encoding is {value[:80]!r}")


async def _read(request: Request, limit: int, seconds: float) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise BodyTooLarge(f"the body has {announced[:20]} bytes, at most {limit} are allowed")
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise BodyTooLarge(f"the body has more than the {limit} bytes that are allowed")
                pieces.append(piece)
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {seconds:g} s; {size} bytes came") from None
    except ClientDisconnect:
        raise InvalidRequest("the connection closed before the body was complete") from None
    return b"".join(pieces)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:80]!r} appears twice in one object")
    return value


def _plain_reason(reason: str) -> str:
    reason = reason.partition(" - at ")[0].removeprefix("JSON is malformed: ")
    return reason.replace("Input data was truncated", "it, or a character in it, ends too early")[:200]
