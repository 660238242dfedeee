"""Checks of numbers, files and addresses that the user names, for settings and commands. Each raises ConfigError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

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


@contextmanager
def writing(path: str | Path, param: str | None = None) -> Iterator[None]:
    """A file that cannot be written within is named."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", param=param) from error


def split_url(url: str, *schemes: str) -> SplitResult:
    """The parts of an address with one of these schemes (http without any), a host and, if there is one, a port."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme in schemes and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # of a port, or of brackets that do not match
        pass
    raise ConfigError(f"url must look like http://host:port, got {url!r}", param="url")


def _check(owner: object, names: tuple[str, ...], is_right: Callable[[float], bool], wanted: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and not is_right(value):
            raise ConfigError(f"{name} must be {wanted}, got {value}", param=name)
