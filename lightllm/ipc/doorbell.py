"""A doorbell: wakes a process that sleeps on a file descriptor.

Knows eventfd (Linux) and the non-blocking pipe (elsewhere). When to ring is the caller's protocol; ringing an
already ringing bell is free of effect, and a ring is never lost: it stays readable until `clear`.
"""

import contextlib
import os

_ONE = (1).to_bytes(8, "little")


class Doorbell:
    """`read_fd` is readable while the bell rings; for an eventfd `read_fd == write_fd`."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        """Takes ownership of both descriptors."""
        self.read_fd = read_fd
        self.write_fd = write_fd
        for fd in self.fds:
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)

    @classmethod
    def create(cls) -> "Doorbell":
        """A silent bell. Raises OSError when the process has no descriptors left."""
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return cls(fd, fd)
        return cls(*os.pipe())

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.read_fd,) if self.read_fd == self.write_fd else (self.read_fd, self.write_fd)

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is ringing already
            os.write(self.write_fd, _ONE)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # empty: it was silent
            while len(os.read(self.read_fd, 4096)) == 4096:
                pass

    def close(self) -> None:
        """A second call does nothing."""
        if self.read_fd < 0:
            return
        for fd in self.fds:
            os.close(fd)
        self.read_fd = self.write_fd = -1
