"""Log lines and the variable that sets their level."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest

from lightllm import envs, logs
from lightllm.errors import ConfigError


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Puts logging back as it was."""
    root, own = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = (root.handlers[:], root.level, own.level, sys.excepthook)
    yield
    root.handlers[:], level, own_level, sys.excepthook = before[0], before[1], before[2], before[3]
    root.setLevel(level)
    own.setLevel(own_level)
    logging.captureWarnings(False)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def test_a_line_has_a_time_a_level_and_the_process(pipe: tuple[int, int]) -> None:
    logs.configure("info", "engine", pipe[1])
    logging.getLogger("lightllm.anything").info("%d slots", 5)
    logging.getLogger("lightllm.anything").debug("too fine")
    logging.getLogger("another.package").info("not ours")
    line = os.read(pipe[0], 4096).decode()
    assert line.endswith(" info    engine: 5 slots\n")
    assert line.count("\n") == 1


def test_warnings_go_to_stderr(pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "", pipe[1])
    logging.getLogger("lightllm.x").warning("careful")
    assert capfd.readouterr().err.endswith(" warning careful\n")


def test_a_reader_that_went_away_is_no_reason_to_fail(pipe: tuple[int, int]) -> None:
    logs.configure("info", "", pipe[1])
    os.close(pipe[0])
    logging.getLogger("lightllm.x").info("nobody hears this")


def test_the_level_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(envs.LOG_LEVEL.name, raising=False)
    assert envs.log_level() == "info"
    monkeypatch.setenv(envs.LOG_LEVEL.name, "DEBUG")
    assert envs.log_level() == "debug"
    monkeypatch.setenv(envs.LOG_LEVEL.name, "loud")
    with pytest.raises(ConfigError, match="LIGHTLLM_LOG_LEVEL must be one of debug, info, warning, error, got 'loud'"):
        envs.log_level()
