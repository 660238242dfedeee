"""Flags from dataclasses: what the commands share. Names, defaults and help come from the fields and their docstrings.

    @dataclass(frozen=True, slots=True)
    class Flags:
        model: ModelFlags = field(default_factory=ModelFlags)     # its fields become --dtype, --dummy, ...
        prompt: tuple[str, ...] = ()                              # --prompt, may be repeated

A field `max_model_len` is the flag --max-model-len, and --max_model_len is understood too.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

import tyro

from lightllm.config.settings import EngineSettings, ModelSettings, SchedulerSettings, ServerSettings, Settings

Flags = TypeVar("Flags")


@dataclass(frozen=True, slots=True)
class ModelFlags(ModelSettings):
    """Which model, and in what form."""

    model: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="MODEL")]] = None
    """Directory in Hugging Face format, or a hub name; the bundled demo model when omitted."""


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """How tokens are chosen; the model's own recommendation where a flag is omitted."""

    max_tokens: int | None = None
    """Most tokens of an answer; as many as the context holds when omitted."""
    temperature: float | None = None
    """0 for greedy decoding."""
    top_k: int | None = None
    """Sample among this many likeliest tokens."""
    top_p: float | None = None
    """Sample among the likeliest tokens that reach this probability together."""
    min_p: float | None = None
    """Sample among tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float | None = None
    """Above 1, tokens that occurred become less likely."""
    sampling_seed: int | None = None
    """The same seed gives the same tokens."""
    stop: tuple[str, ...] = ()
    """Text that ends an answer; may be repeated."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token."""

    def given(self) -> dict[str, Any]:
        """What was set, by the names of SamplingParams."""
        names = {"sampling_seed": "seed"}
        values = {names.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        return {
            name: value for name, value in values.items() if value is not None and value is not False and value != ()
        }


def parse(flags: type[Flags], command: str, argv: Sequence[str], *, append: bool = True) -> Flags:
    """Read `argv` into `flags`; wrong usage prints what is wrong and exits with 2, --help exits with 0.

    A flag with several values is repeated if `append`, else its values follow it.
    """
    config = (
        tyro.conf.OmitArgPrefixes,
        tyro.conf.HelptextFromCommentsOff,
        tyro.conf.DisallowNone,
        *((tyro.conf.UseAppendAction,) if append else ()),
    )
    return tyro.cli(
        flags, prog=f"lightllm {command}", description=inspect.getdoc(flags), args=list(argv), config=config
    )


def settings_of(
    model: ModelSettings,
    engine: EngineSettings | None = None,
    scheduler: SchedulerSettings | None = None,
    server: ServerSettings | None = None,
) -> Settings:
    """Settings from the sections that a command has."""
    values = {f.name: getattr(model, f.name) for f in fields(ModelSettings)}
    return Settings(
        ModelSettings(**values),
        engine or EngineSettings(),
        scheduler or SchedulerSettings(),
        server or ServerSettings(),
    )


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[statement.target.id] = " ".join(text.split())
    return found
