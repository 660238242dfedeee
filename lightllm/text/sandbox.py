"""The jinja2 environment of chat templates: what a template may call, and how much it may do.

It offers what Transformers 5 offers (`render_jinja_template`): trimmed blocks, `break` and `continue`,
`tojson` without HTML escapes, `raise_exception`, `strftime_now`, a plain `namespace` and `dict`, and the
`generation` block. It adds limits: loop steps and output per rendering, and the size of repeated strings.
Importing this module imports jinja2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lightllm.errors import CheckpointError, InvalidRequest

__all__ = ["MAX_LOOP_STEPS", "MAX_OUTPUT", "compile_template", "render_template"]

MAX_OUTPUT = 16 * 2**20
"""Characters that one rendering may produce."""

MAX_LOOP_STEPS = 2_000_000
"""Loop steps that one rendering may take, over all its loops."""

_steps_left: ContextVar[int] = ContextVar("steps_left")


@lru_cache(maxsize=64)
def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template once; raises CheckpointError with the line at fault."""
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"the chat template does not compile: line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, RecursionError, SyntaxError, OverflowError) as error:
        raise CheckpointError(f"the chat template does not compile: {error}") from error


def render_template(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Render within the limits; raises InvalidRequest with the template's own message or the limit."""
    token = _steps_left.set(MAX_LOOP_STEPS)
    try:
        return _collect(template.generate(variables))
    except InvalidRequest:
        raise
    except jinja2.TemplateError as error:
        raise InvalidRequest(f"the chat template refused the messages: {error.message}", param="messages") from error
    except Exception as error:  # a template is code: any operation in it may fail with any exception
        reason = f"{type(error).__name__}: {error}"
        raise InvalidRequest(f"the chat template failed on these messages: {reason}", param="messages") from error
    finally:
        _steps_left.reset(token)


def _collect(chunks: Iterable[str]) -> str:
    parts: list[str] = []
    length = 0
    for chunk in chunks:
        length += len(chunk)
        if length > MAX_OUTPUT:
            raise InvalidRequest(f"the rendered chat passes the limit of {MAX_OUTPUT} characters", param="messages")
        parts.append(chunk)
    return "".join(parts)


class _Environment(ImmutableSandboxedEnvironment):
    """Refuses to build huge values with `*` and `**`; the sandbox itself limits `range`."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        size = _product_size(left, right) if operator == "*" else 0
        if size > MAX_OUTPUT:
            raise jinja2.TemplateRuntimeError(f"a repetition of {size} items passes the limit of {MAX_OUTPUT}")
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64 and abs(left) <= 2**64):
            raise jinja2.TemplateRuntimeError("powers are limited to a base of 2**64 and an exponent of 64")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Let every loop count its steps."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return tree


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; for serving it is its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _PlainNamespace(Namespace):
    """`namespace()` that stores no underscore names, as Transformers restricts it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `namespace(self=...)` is a legal call
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _PlainDict:
    """`dict(...)` and `dict.fromkeys` without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.filters["counted"] = _counted
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _PlainNamespace,
        "dict": _PlainDict(),
    }
    return environment


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """Iterate while the rendering has steps left."""
    for item in items:
        left = _steps_left.get() - 1
        if left < 0:
            raise jinja2.TemplateRuntimeError(f"its loops pass the limit of {MAX_LOOP_STEPS} steps")
        _steps_left.set(left)
        yield item


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace stores no name that begins with an underscore: {name!r}")


def _product_size(left: Any, right: Any) -> int:
    """Length of `left * right` if one is a sequence and the other a count, else 0."""
    for items, count in ((left, right), (right, left)):
        if isinstance(items, str | bytes | list | tuple) and isinstance(count, int):
            return len(items) * count
    return 0
