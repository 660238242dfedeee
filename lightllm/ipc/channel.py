"""Typed channels: messages instead of bytes, over a ring or within one process.

Knows codecs and what happens to a message that cannot be decoded. Transports: `RingSender` and `RingReceiver`
between processes of one host, `local_channel` within a process (tests, the offline API), `sockets` across
hosts. All follow `Sender` and `waiting.Receiver`, so a worker's loop does not know which one it has.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from lightllm.ipc.doorbell import Doorbell
from lightllm.ipc.ring import RingReader, RingWriter
from lightllm.ipc.waiting import Receiver

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Encode = Callable[[T], bytes]
Decode = Callable[[bytes], T]
OnBad = Callable[[bytes, Exception], None]

logger = logging.getLogger(__name__)


class Sender(Protocol[T_contra]):
    """The sending end of a channel. One thread sends at a time."""

    def send(self, message: T_contra) -> None:
        """Queues `message` without waiting. Raises Backpressure or ProtocolError; then it is not sent."""

    def flush(self) -> bool:
        """Moves what waits for room on its way; True when nothing waits."""

    def fileno(self) -> int | None:
        """Readable when there is room for what waits, then call `flush`; None if nothing ever waits here."""

    def close(self) -> None: ...


def log_bad(data: bytes, error: Exception) -> None:
    """The default answer to an undecodable message: a warning with its size, never its content."""
    logger.warning("dropped a message of %d bytes: %s: %s", len(data), type(error).__name__, error)


def decode_all(batch: list[bytes], decode: Decode[T], on_bad: OnBad) -> list[T]:
    """Decodes each; what fails goes to `on_bad` and only that message is left out."""
    messages = []
    for data in batch:
        try:
            messages.append(decode(data))
        except Exception as error:
            on_bad(data, error)
    return messages


class RingSender(Sender[T_contra]):
    """Messages into a ring."""

    def __init__(self, writer: RingWriter, encode: Callable[[T_contra], bytes]) -> None:
        self.writer = writer
        self._encode = encode
        self._write = writer.send

    def send(self, message: T_contra) -> None:
        self._write(self._encode(message))

    def flush(self) -> bool:
        return self.writer.flush()

    def fileno(self) -> int:
        return self.writer.fileno()

    def close(self) -> None:
        self.writer.close()


class RingReceiver(Receiver[T]):
    """Messages out of a ring."""

    def __init__(self, reader: RingReader, decode: Decode[T], on_bad: OnBad = log_bad) -> None:
        self.reader = reader
        self._decode = decode
        self._on_bad = on_bad

    def receive(self) -> list[T]:
        batch = self.reader.receive()
        return decode_all(batch, self._decode, self._on_bad) if batch else []

    def ready(self) -> bool:
        return self.reader.ready()

    def arm(self) -> bool:
        return self.reader.arm()

    def disarm(self) -> None:
        self.reader.disarm()

    def fileno(self) -> int:
        return self.reader.fileno()

    def close(self) -> None:
        self.reader.close()


class LocalSender(Sender[T]):
    """Messages to a `LocalReceiver` of the same process, from any thread."""

    def __init__(self, receiver: "LocalReceiver[T]", encode: Encode[T] | None) -> None:
        self._receiver = receiver
        self._encode = encode

    def send(self, message: T) -> None:
        self._receiver.put(message if self._encode is None else self._encode(message))

    def flush(self) -> bool:
        return True

    def fileno(self) -> None:
        """Nothing ever waits."""

    def close(self) -> None:
        """Nothing is held; the receiver keeps what was sent."""


class LocalReceiver(Receiver[T]):
    """A deque with a doorbell that exists only if someone sleeps on it."""

    def __init__(self, decode: Decode[T] | None, on_bad: OnBad) -> None:
        self._decode = decode
        self._on_bad = on_bad
        self._queue: deque[T | bytes] = deque()
        self._bell: Doorbell | None = None
        self._armed = False

    def put(self, item: T | bytes) -> None:
        """Called by the sender: queues, then wakes a sleeper."""
        self._queue.append(item)
        if self._armed and self._bell is not None:
            self._bell.ring()

    def receive(self) -> list[T]:
        queue = self._queue
        items = [queue.popleft() for _ in range(len(queue))]
        if self._decode is None:
            return items  # type: ignore[return-value]  # nothing was encoded
        return decode_all(items, self._decode, self._on_bad)  # type: ignore[arg-type]  # everything was

    def ready(self) -> bool:
        return bool(self._queue)

    def arm(self) -> bool:
        self.fileno()
        self._armed = True
        if self._queue:
            self.disarm()
            return False
        return True

    def disarm(self) -> None:
        self._armed = False
        if self._bell is not None:
            self._bell.clear()

    def fileno(self) -> int:
        if self._bell is None:
            self._bell = Doorbell.create()
        return self._bell.read_fd

    def close(self) -> None:
        self._armed = False
        if self._bell is not None:
            self._bell.close()
            self._bell = None


def local_channel(
    encode: Encode[T] | None = None,
    decode: Decode[T] | None = None,
    *,
    strict: bool = False,
    on_bad: OnBad = log_bad,
) -> tuple[LocalSender[T], LocalReceiver[T]]:
    """The in-process twin of a ring channel. Senders may be on other threads.

    With `strict`, messages pass through the codec as they would between processes, so what cannot be
    serialised fails in a test. Raises ValueError if `strict` has no codec.
    """
    if not strict:
        encode = decode = None
    elif encode is None or decode is None:
        raise ValueError("strict needs both encode and decode")
    receiver = LocalReceiver(decode, on_bad)
    return LocalSender(receiver, encode), receiver
