"""Sleeping until a message arrives, on one receiver or several, in a thread or in asyncio.

Knows the arm protocol every receiver follows; it does not know the transports.

    arm()       declare sleep; False if something is there already     ─┐
    fileno()    readable once something arrives after that              ├─ no wake-up is lost between the two
    disarm()    end the sleep and silence the descriptor               ─┘

A sleep costs no processor time but a second look every `BACKSTOP` seconds, a safety net for machines where
the fence of `layout.new_fence` is weaker than on x86-64.
"""

import asyncio
import select
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R", bound="Armable")
BACKSTOP = 1.0
"""Longest single sleep in seconds."""


class Armable(Protocol):
    """What can be slept on."""

    def ready(self) -> bool: ...
    def arm(self) -> bool: ...
    def disarm(self) -> None: ...
    def fileno(self) -> int: ...


class Flushable(Protocol):
    """A sender whose backlog wants room; `fileno` is readable when there is some, None if it never waits."""

    def flush(self) -> bool: ...
    def fileno(self) -> int | None: ...


class Receiver(Generic[T]):
    """The receiving end of a channel of messages `T`: a transport fills in the first five methods.

    One thread, or one asyncio task, receives at a time.
    """

    def receive(self) -> list[T]:
        """All messages that are here now, oldest first; never waits."""
        raise NotImplementedError

    def ready(self) -> bool:
        """True when `receive` has work to do (which may end in no message, such as after a bad one)."""
        raise NotImplementedError

    def arm(self) -> bool:
        raise NotImplementedError

    def disarm(self) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> bool:
        """Sleeps up to `timeout` seconds (None: for ever); True when there is something to receive."""
        return bool(wait_any([self], timeout))

    async def next(self) -> list[T]:
        """The next batch, never empty. Cancelling it loses no message."""
        await asyncio.sleep(0)  # a busy channel must not starve its event loop
        while not (batch := self.receive()):
            if self.arm():
                try:
                    await _readable(self.fileno(), BACKSTOP)
                finally:
                    self.disarm()
        return batch

    async def stream(self) -> AsyncIterator[list[T]]:
        """Batches for ever: `async for batch in receiver.stream()`."""
        while True:
            yield await self.next()


class Poller(Generic[R]):
    """Sleeps on several receivers at once, and on senders whose backlog waits for room.

    The set is fixed; a loop makes one Poller and calls `wait` each time it has nothing to do.
    """

    def __init__(self, receivers: Iterable[R], senders: Iterable[Flushable] = ()) -> None:
        self._receivers = list(receivers)
        self._senders = list(senders)
        self._poll = select.poll()
        for fd in (*(end.fileno() for end in self._receivers), *(end.fileno() for end in self._senders)):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)

    def wait(self, timeout: float | None = None) -> list[R]:
        """The receivers that have work, in the order given; empty after `timeout` seconds (None: never).

        Backlogs are flushed before the sleep and whenever room is made.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if ready := self._ready():
                return ready
            left = BACKSTOP if deadline is None else min(deadline - time.monotonic(), BACKSTOP)
            if left <= 0:
                return []
            self._sleep(left)

    def _ready(self) -> list[R]:
        for sender in self._senders:
            sender.flush()
        return [receiver for receiver in self._receivers if receiver.ready()]

    def _sleep(self, seconds: float) -> None:
        armed: list[R] = []
        try:
            for receiver in self._receivers:
                if not receiver.arm():
                    return
                armed.append(receiver)
            self._poll.poll(seconds * 1000)
        finally:
            for receiver in armed:
                receiver.disarm()


def wait_any(receivers: Sequence[R], timeout: float | None = None) -> list[R]:
    """One-off `Poller.wait`: the receivers that have work, or none after `timeout` seconds."""
    return Poller(receivers).wait(timeout)


async def _readable(fd: int, timeout: float) -> None:
    """Returns when `fd` is readable or after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    timer = loop.call_later(timeout, _wake, woken)
    loop.add_reader(fd, _wake, woken)
    try:
        await woken
    finally:
        loop.remove_reader(fd)
        timer.cancel()


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def drain(sender: Flushable) -> None:
    """Waits until the backlog of `sender` is on its way; for one task at a time."""
    while not sender.flush():
        fd = sender.fileno()
        assert fd is not None, "a sender that cannot wait has nothing to flush"
        await _readable(fd, BACKSTOP)
