"""Where and how a figure came about, and writing it down as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightllm
from lightllm.config.checks import writing


def command_line() -> str:
    """The command that is running, as a person would type it. Where the report goes does not matter to who repeats it,
    and a key is nobody else's business."""
    program = Path(sys.argv[0])
    start = ["lightllm"] if program.name in ("lightllm", "main.py") else ["python", _relative(program)]
    return shlex.join([*start, *_without(sys.argv[1:], "--json", "--api-key")])


def _without(arguments: Sequence[str], *flags: str) -> list[str]:
    """Arguments without those flags and their values, in either spelling: `--flag value` or `--flag=value`."""
    left: list[str] = []
    words = iter(arguments)
    for word in words:
        name, joined, _ = word.partition("=")
        if name.replace("_", "-") not in flags:
            left.append(word)
        elif not joined:
            next(words, None)
    return left


def _relative(path: Path) -> str:
    """The path from here if it lies below, else its name: a report names no one's home directory."""
    resolved, here = path.resolve(), Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else path.name


def software() -> dict[str, str]:
    """Versions and the host's kind, without torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "lightllm": lightllm.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": str(cores),
    }


def show(text: str, json_path: str | None) -> None:
    """Print text for people: beside the report if that goes to standard output, so that it stays JSON."""
    print(text, file=sys.stderr if json_path == "-" else sys.stdout, flush=True)


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a report; "-" is standard output. Raises ConfigError when the file cannot be written."""
    text = json.dumps(content, indent=2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with writing(path):
        Path(path).write_text(text, encoding="utf-8")
