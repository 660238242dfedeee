"""Several receivers as one: for a loop that takes a single inbox.

Knows the arm protocol of `waiting`. It needs a descriptor that is readable when any of several is: epoll on Linux,
kqueue on macOS and BSD.
"""

import contextlib
import select
from collections.abc import Sequence
from typing import TypeVar

from lightllm.ipc.waiting import Receiver

T = TypeVar("T")


class MergedReceiver(Receiver[T]):
    """Messages of all `receivers`, which it owns; each batch has those of the first before those of the second."""

    def __init__(self, receivers: Sequence[Receiver[T]]) -> None:
        self._receivers = list(receivers)
        self._any = _AnyReadable([receiver.fileno() for receiver in receivers])

    def receive(self) -> list[T]:
        return [message for receiver in self._receivers for message in receiver.receive()]

    def ready(self) -> bool:
        return any(receiver.ready() for receiver in self._receivers)

    def arm(self) -> bool:
        with contextlib.ExitStack() as armed:
            for receiver in self._receivers:
                if not receiver.arm():
                    return False
                armed.callback(receiver.disarm)
            armed.pop_all()
        return True

    def disarm(self) -> None:
        for receiver in self._receivers:
            receiver.disarm()

    def fileno(self) -> int:
        return self._any.fileno()

    def close(self) -> None:
        self._any.close()
        for receiver in self._receivers:
            receiver.close()


class _AnyReadable:
    """A descriptor that is readable while any of `fds` is."""

    def __init__(self, fds: Sequence[int]) -> None:
        if hasattr(select, "epoll"):
            epoll = select.epoll()
            for fd in fds:
                epoll.register(fd, select.EPOLLIN)
            self.fileno, self.close = epoll.fileno, epoll.close
        else:
            kqueue = select.kqueue()  # type: ignore[attr-defined]
            kqueue.control([select.kevent(fd, select.KQ_FILTER_READ) for fd in fds], 0)  # type: ignore[attr-defined]
            self.fileno, self.close = kqueue.fileno, kqueue.close
