"""The environment variables that lightllm reads: one place, each with its meaning.

Settings belong to flags; a variable is for what must hold before flags are read, or in every process at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable, its default, what it means, and the values it may have."""

    name: str
    default: str
    help: str
    choices: tuple[str, ...]

    def read(self) -> str:
        """The value in force. Raises ConfigError for one that is no choice."""
        value = os.environ.get(self.name, "").strip().lower() or self.default
        if value not in self.choices:
            raise ConfigError(f"{self.name} must be one of {', '.join(self.choices)}, got {value!r}", param=self.name)
        return value


LOG_LEVEL = Variable(
    "LIGHTLLM_LOG_LEVEL",
    "info",
    "The least severe log line that is written, by every process.",
    ("debug", "info", "warning", "error"),
)

ALL = (LOG_LEVEL,)


def log_level() -> str:
    """Name of the log level, in lower case. Raises ConfigError."""
    return LOG_LEVEL.read()


def openmp_threads() -> int | None:
    """OpenMP's own variable, OMP_NUM_THREADS, if it holds a positive number: its first level counts."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
