"""Checks of numbers and files that the user names, shared by settings and commands. Each raises ConfigError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightllm.errors import ConfigError

INFINITE = float("inf")


def check_at_least_one(owner: object, *names: str) -> None:
    """Those fields are None or at least 1."""
    _check(owner, names, lambda value: value >= 1, "at least 1")


def check_positive(owner: object, *names: str) -> None:
    """Those fields are None or positive and finite."""
    _check(owner, names, lambda value: 0.0 < value < INFINITE, "a positive number")


def check_not_negative(owner: object, *names: str) -> None:
    """Those fields are None or finite and not below 0."""
    _check(owner, names, lambda value: 0.0 <= value < INFINITE, "a number of at least 0")


def read_text(path: str, what: str, param: str) -> str:
    """The text of a file, whose path may begin with ~."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # the last for ~user if there is no such user
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise ConfigError(f"{what} {path} cannot be read: {reason}", param=param) from error


def _check(owner: object, names: tuple[str, ...], is_right: Callable[[float], bool], wanted: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and not is_right(value):
            raise ConfigError(f"{name} must be {wanted}, got {value}", param=name)
