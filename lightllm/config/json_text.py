"""JSON that others wrote: files of a model, traces, answers of servers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeGuard

from lightllm.errors import CheckpointError


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, also for one that nests without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file of a model. Raises CheckpointError for a file that is missing or holds anything else."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, it holds {type(value).__name__}")
    return value


def read_object_if_there(path: Path) -> dict[str, Any]:
    """As `read_object`; an empty one where there is no such file."""
    return read_object(path) if path.is_file() else {}


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a parsed value is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
