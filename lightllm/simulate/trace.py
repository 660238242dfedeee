"""Traces: real arrivals and lengths from a file, one request a line.

CSV with the header `arrival,prompt_tokens,output_tokens` and optionally `max_tokens,tenant`, or JSON lines with the
same keys. `arrival` is in seconds from the first request and never decreases.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightllm.config.json_text import parse_json
from lightllm.errors import ConfigError
from lightllm.simulate.workload import Job

_REQUIRED = ("arrival", "prompt_tokens", "output_tokens")
_OPTIONAL = ("max_tokens", "tenant")
_VOCABULARY = 32_000


def read_trace(path: str | Path, total_tokens: int, seed: int = 0) -> list[Job]:
    """The jobs of a trace, with random tokens of the given lengths, for a pool of `total_tokens`.

    ConfigError names the line that is wrong.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # spreadsheets begin with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace: cannot read {file}: {error}", param="trace") from error
    rows = _json_rows(lines) if file.suffix in (".jsonl", ".json") else _csv_rows(lines)
    random = np.random.default_rng([seed, 2])
    jobs: list[Job] = []
    for number, row in rows:
        try:
            job = _job(row, total_tokens, random)
            if jobs and job.arrival is not None and job.arrival < (jobs[-1].arrival or 0.0):
                raise ValueError(f"arrival {job.arrival:g} comes before that of the line above")
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"trace: {file}, line {number}: {error}", param="trace") from error
        jobs.append(job)
    if not jobs:
        raise ConfigError(f"trace: {file} holds no requests", param="trace")
    return jobs


def _csv_rows(lines: list[str]) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(lines)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(f"trace: after line {reader.line_num}: {error}", param="trace") from error


def _json_rows(lines: list[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError:
                yield number, None


def _job(row: Any, total_tokens: int, random: np.random.Generator) -> Job:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    unknown = set(row) - {*_REQUIRED, *_OPTIONAL}
    missing = [name for name in _REQUIRED if row.get(name) in (None, "")]
    if unknown or missing:
        raise ValueError(f"needs {', '.join(_REQUIRED)}; missing {missing}, unknown {sorted(map(str, unknown))}")
    arrival = float(row["arrival"])
    prompt_len, output_len = _whole(row, "prompt_tokens"), _whole(row, "output_tokens")
    max_tokens = _whole(row, "max_tokens") if row.get("max_tokens") else output_len
    if not 0.0 <= arrival < float("inf"):
        raise ValueError(f"arrival must be at least 0, got {arrival}")
    if max_tokens < output_len:
        raise ValueError(f"max_tokens {max_tokens} is less than output_tokens {output_len}")
    if prompt_len + max_tokens > total_tokens:
        raise ValueError(f"a prompt of {prompt_len} and an output of up to {max_tokens} exceed {total_tokens} slots")
    prompt = random.integers(2, _VOCABULARY, prompt_len, np.int32)
    return Job(prompt, output_len, max_tokens, str(row.get("tenant") or ""), arrival)


def _whole(row: dict[str, Any], name: str) -> int:
    value = int(row[name])
    if value < 1 or isinstance(row[name], float | bool):
        raise ValueError(f"{name} must be a whole number of at least 1, got {row[name]}")
    return value
