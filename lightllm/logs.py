"""Log lines: one event, one line, written at once.

    12:30:01.250 info    engine: 4096 slots of KV

Several processes share a terminal, so a line (with its traceback, if it has one) is one write and nothing is held back.
A reader that went away is no reason to fail. This module knows formats; what is worth a line is said elsewhere.
"""

from __future__ import annotations

import logging
import os
import sys
import time

ROOT = "lightllm"
STDOUT, STDERR = 1, 2


class LineHandler(logging.Handler):
    """Writes to a file descriptor: warnings and worse to stderr, the rest to `fd`."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        fd = STDERR if record.levelno >= logging.WARNING else self._fd
        try:
            _write_all(fd, (self.format(record) + "\n").encode(errors="replace"))
        except OSError:
            pass  # the terminal or the reader of the pipe is gone
        except Exception:
            self.handleError(record)


class LineFormatter(logging.Formatter):
    """Time of day, level and the name of the process."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._prefix = f"{process}: " if process else ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record)} {record.levelname.lower():<7} {self._prefix}{record.message}"


def configure(level: str = "info", process: str = "", fd: int = STDOUT) -> None:
    """Send the log lines of this process to `fd`, those of warnings and worse to stderr; `process` is their prefix.

    Other packages are heard from `warning` on. Calling it again replaces what was set up before.
    """
    handler = LineHandler(fd)
    handler.setFormatter(LineFormatter(process))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, LineHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: object) -> None:
    if not isinstance(error, KeyboardInterrupt):
        logging.getLogger(ROOT).critical("uncaught %s", kind.__name__, exc_info=error)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
