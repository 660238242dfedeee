"""Signals as something to sleep on, beside rings: their handlers only take a note.

Follows the arm protocol of `lightllm.ipc.waiting`. For the main thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from types import FrameType
from typing import Any

WATCHED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """Takes the watched signals over until `close`. One that was ignored (nohup) stays ignored."""

    def __init__(self) -> None:
        self._noted: deque[int] = deque()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._old_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._old: dict[int, Any] = {}
        for number in WATCHED:
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._note)

    def take(self) -> list[int]:
        """The signals that arrived since the last call, in order."""
        return [self._noted.popleft() for _ in range(len(self._noted))]

    def ready(self) -> bool:
        return bool(self._noted)

    def arm(self) -> bool:
        return not self._noted  # what comes after this look writes to the pipe

    def disarm(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_fd, 4096):
                pass

    def fileno(self) -> int:
        return self._read_fd

    def close(self) -> None:
        """Put the handlers back."""
        for number, old in self._old.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append(number)
