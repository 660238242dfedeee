"""docs/configuration.md: every setting with its flag, type, default and help, from the dataclasses."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from markdown import GENERATED, code, table

from lightllm import envs
from lightllm.cli.flags import field_docs
from lightllm.config.settings import Settings

INTRODUCTION = """\
# Configuration

Every setting is a field of a frozen dataclass in `lightllm/config/settings.py`, a flag of `lightllm serve` (and of
the other commands, as far as it concerns them) and a keyword of `lightllm.LLM`:

    lightllm serve MODEL --max-total-tokens 65536 --api-key first --api-key second --no-prefix-cache
    LLM(MODEL, max_total_tokens=65536, prefix_cache=False)

Flags are spelled with dashes or underscores. A flag that takes several values is repeated. A default of *auto* is
turned into a value when the server starts, and the start-up log says which and why; nothing changes afterwards. A
value out of range, an unknown flag or an unknown keyword is an error that names it.
"""


def page() -> str:
    """The whole page."""
    hints = get_type_hints(Settings)
    sections = [_section(field.name, hints[field.name]) for field in fields(Settings)]
    return GENERATED + INTRODUCTION + "".join(sections) + _variables()


def _variables() -> str:
    rows = [
        [code(variable.name), ", ".join(map(code, variable.choices)), code(variable.default), variable.help]
        for variable in envs.ALL
    ]
    return "\n## Environment\n\n" + table(("variable", "values", "default", "meaning"), rows)


def _section(name: str, cls: type) -> str:
    docs, hints = field_docs(cls), get_type_hints(cls)
    rows = [
        [_flag(f.name, hints[f.name]), _type(hints[f.name]), _default(f, docs[f.name]), docs[f.name]]
        for f in fields(cls)
    ]
    title = f"\n## {name.capitalize()}\n\n{(cls.__doc__ or '').strip()}\n\n"
    return title + table(("flag", "type", "default", "meaning"), rows)


def _flag(name: str, hint: Any) -> str:
    if name == "model":
        return code("MODEL")
    flag = name.replace("_", "-")
    return code(f"--{flag}") + (f", {code(f'--no-{flag}')}" if hint is bool else "")


def _type(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return ", ".join(code(str(choice)) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"{_type(get_args(hint)[0])}, repeatable"
    choices = [part for part in get_args(hint) if part is not type(None)]
    if choices:
        return _type(choices[0])
    return {"str": "text", "int": "integer", "float": "number", "bool": "switch"}[hint.__name__]


def _default(field: Field[Any], doc: str) -> str:
    assert field.default is not MISSING
    match field.default:
        case None:
            return "auto" if "auto:" in doc else ""
        case bool(value):
            return "on" if value else "off"
        case () | "":
            return ""
        case value:
            return code(str(value))
