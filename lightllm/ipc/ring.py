"""A byte ring between two processes: one writer, one reader, shared memory without a name.

Knows how records are written, read, split and joined, and who wakes whom. It does not know what a message
means (`channel` does) nor how to sleep on several rings (`waiting` does). The layout is drawn in `layout`.

The process that owns the tree creates the ring and hands `handle()` to its children with `pass_fds=ring.fds`:

    parent                 Ring.create() ── keeps it, so that a restarted child can attach again
    child A (writer)       RingWriter(Ring.attach(handle))
    child B (reader)       RingReader(Ring.attach(handle))

Any of them may be killed at any instant. A record is published by one store, so nothing partial is seen; a
new writer goes on at the stored tail; a new reader goes on at the stored head or calls `skip_all`; a message
whose writer or reader died between two fragments is dropped, as only a FIRST fragment starts a message.
"""

import time
from collections import deque

import msgspec

from lightllm.errors import Backpressure, ConfigError, ProtocolError
from lightllm.ipc import layout
from lightllm.ipc.doorbell import Doorbell
from lightllm.ipc.layout import FIRST, HEAD, HEADER, HEADER_BYTES, LAST, SLEEPS, STARVES, TAIL, WHOLE
from lightllm.ipc.memory import Segment

MIB = 1 << 20
MAX_MESSAGE_BYTES = 256 * MIB
_LARGEST_CAPACITY = 1 << 30
_TORN_READ_SECONDS = 1.0


class RingHandle(msgspec.Struct, frozen=True):
    """The descriptors of a ring, by number: what a child needs to attach. Small and JSON-able."""

    memory: int
    message_bell: tuple[int, int]
    room_bell: tuple[int, int]

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "RingHandle":
        return msgspec.json.decode(text, type=cls)


class Ring:
    """The shared part: memory and two doorbells. One process at a time writes to it, one reads from it."""

    def __init__(self, segment: Segment, message_bell: Doorbell, room_bell: Doorbell) -> None:
        self.segment = segment
        self.message_bell = message_bell
        self.room_bell = room_bell
        self.capacity = segment.words[layout.CAPACITY_WORD]
        self.seal = layout.checksum_seal if segment.words[layout.CHECKSUM_WORD] else layout.position_seal

    @classmethod
    def create(cls, capacity_bytes: int = 8 * MIB, *, checksum: bool | None = None) -> "Ring":
        """A new, empty ring; `capacity_bytes` in 128 .. 1 GiB is rounded up to a multiple of 64.

        `checksum` seals every record with a CRC; None means: on machines that reorder stores. Memory is taken
        page by page as the ring is first filled. Raises ConfigError.
        """
        if not 128 <= capacity_bytes <= _LARGEST_CAPACITY:
            raise ConfigError(f"capacity_bytes must be in 128 .. {_LARGEST_CAPACITY}, got {capacity_bytes}")
        capacity = capacity_bytes + 63 & ~63
        segment = Segment.create(layout.CONTROL_BYTES + capacity, "lightllm-ring")
        segment.words[layout.MAGIC_WORD] = layout.MAGIC
        segment.words[layout.CAPACITY_WORD] = capacity
        segment.words[layout.CHECKSUM_WORD] = not layout.stores_stay_ordered() if checksum is None else checksum
        return cls(segment, Doorbell.create(), Doorbell.create())

    @classmethod
    def attach(cls, handle: RingHandle) -> "Ring":
        """The ring behind inherited descriptors, which it then owns. Raises ProtocolError if it is none."""
        segment = Segment(handle.memory)
        if len(segment.bytes_) < layout.CONTROL_BYTES or segment.words[layout.MAGIC_WORD] != layout.MAGIC:
            segment.close()
            raise ProtocolError(f"file descriptor {handle.memory} is not a lightllm ring")
        return cls(segment, Doorbell(*handle.message_bell), Doorbell(*handle.room_bell))

    def handle(self) -> RingHandle:
        message_bell, room_bell = self.message_bell, self.room_bell
        return RingHandle(
            memory=self.segment.fd,
            message_bell=(message_bell.read_fd, message_bell.write_fd),
            room_bell=(room_bell.read_fd, room_bell.write_fd),
        )

    @property
    def fds(self) -> tuple[int, ...]:
        """What a child must inherit: `subprocess.Popen(..., pass_fds=ring.fds)`."""
        return (self.segment.fd, *self.message_bell.fds, *self.room_bell.fds)

    def close(self) -> None:
        """Closes this process's descriptors and mapping; a second call does nothing."""
        self.segment.close()
        self.message_bell.close()
        self.room_bell.close()


class RingWriter:
    """The writing end; for one thread. Never blocks: what does not fit waits in a bounded local backlog."""

    def __init__(
        self, ring: Ring, *, max_message_bytes: int = MAX_MESSAGE_BYTES, backlog_bytes: int = 64 * MIB
    ) -> None:
        """Goes on where the last writer stopped. Limits are in bytes of payload."""
        self.max_message_bytes = max_message_bytes
        self.backlog_bytes = backlog_bytes
        self.pending_bytes = 0
        self._ring = ring
        self._bytes = ring.segment.bytes_
        self._words = ring.segment.words
        self._capacity = ring.capacity
        self._seal = ring.seal
        self._fence = layout.new_fence()
        self._fragment_bytes = (ring.capacity // 4 - HEADER_BYTES) & ~7
        self._backlog: deque[bytes] = deque()
        self._sent_of_first = 0
        self._rung = 0
        self._tail = self._words[TAIL]
        self._head = self._words[HEAD]
        self._words[STARVES] += self._words[STARVES] & 1
        self._wake_reader()  # the writer before us may have died between publishing and ringing

    def send(self, data: bytes) -> None:
        """Queues one message, in order. Raises Backpressure (backlog full) or ProtocolError (too large).

        Either error concerns this message only and nothing of it is sent. An empty backlog takes one message
        of any allowed size, so a message larger than the ring gets through; the limit is on what waits behind it.
        """
        size = len(data)
        if size > self.max_message_bytes:
            raise ProtocolError(f"message of {size} bytes is over the limit of {self.max_message_bytes} bytes")
        if not self._backlog and size <= self._fragment_bytes and self._has_room(size):
            self._put(WHOLE, data)
            self._publish()
            return
        if self._backlog and self._words[HEAD] != self._head:
            self.flush()
        if self._backlog and self._behind_first() + size > self.backlog_bytes:
            raise Backpressure(
                f"{self._behind_first()} bytes wait for the reader; {size} more pass the limit of "
                f"{self.backlog_bytes} bytes"
            )
        self._backlog.append(bytes(data))
        self.pending_bytes += size
        if len(self._backlog) == 1:
            self.flush()

    def flush(self) -> bool:
        """Moves the backlog into the ring as far as there is room; True when nothing is left.

        When it returns False, `fileno()` becomes readable as soon as the reader has made room.
        """
        if not self._backlog:
            return True
        if self._words[STARVES] & 1:
            self._sated()
        if self._move():
            return True
        self._words[STARVES] += 1
        self._fence()
        if self._move():  # room made before the reader could see the flag
            self._sated()
            return True
        return False

    def fileno(self) -> int:
        """Readable when room was made for a waiting backlog; then call `flush`."""
        return self._ring.room_bell.read_fd

    def close(self) -> None:
        """Closes the ring in this process; the backlog is lost."""
        self._backlog.clear()
        self.pending_bytes = 0
        self._ring.close()

    def _behind_first(self) -> int:
        """Bytes that wait behind the message under way: however large that is, it must not cost the small ones."""
        return self.pending_bytes - len(self._backlog[0]) + self._sent_of_first

    def _sated(self) -> None:
        self._words[STARVES] += 1
        self._ring.room_bell.clear()

    def _has_room(self, length: int) -> bool:
        needed = self._tail + layout.record_bytes(length) - self._capacity
        if needed > self._head:
            self._head = self._words[HEAD]
        return needed <= self._head

    def _move(self) -> bool:
        """Writes records of the backlog while they fit; True when it is empty."""
        backlog, limit = self._backlog, self._fragment_bytes
        while backlog:
            data, start = backlog[0], self._sent_of_first
            length = min(len(data) - start, limit)
            if not self._has_room(length):
                return False
            end = start + length
            last = end == len(data)
            payload = data if length == len(data) else data[start:end]
            self._put((0 if start else FIRST) | (LAST if last else 0), payload)
            self._publish()
            self._sent_of_first = 0 if last else end
            self.pending_bytes -= length
            if last:
                backlog.popleft()
        return True

    def _put(self, flags: int, payload: bytes) -> None:
        """Writes one record behind the tail, where no reader looks yet."""
        data, capacity, tail = self._bytes, self._capacity, self._tail
        length = len(payload)
        word = flags | length
        offset = layout.CONTROL_BYTES + tail % capacity
        HEADER.pack_into(data, offset, word, self._seal(word, tail, payload))
        start = offset + HEADER_BYTES
        room = layout.CONTROL_BYTES + capacity - start
        if length <= room:
            data[start : start + length] = payload
        else:
            data[start : start + room] = payload[:room]
            data[layout.CONTROL_BYTES : layout.CONTROL_BYTES + length - room] = payload[room:]
        self._tail = tail + layout.record_bytes(length)

    def _publish(self) -> None:
        self._words[TAIL] = self._tail
        self._fence()
        self._wake_reader()

    def _wake_reader(self) -> None:
        sleeps = self._words[SLEEPS]
        if sleeps & 1 and sleeps != self._rung:
            self._rung = sleeps
            self._ring.message_bell.ring()


class RingReader:
    """The reading end; for one thread."""

    def __init__(self, ring: Ring, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """Goes on at the stored head. A message joined from fragments past the limit is dropped."""
        self.max_message_bytes = max_message_bytes
        self.dropped = 0
        """Messages lost to a dead writer or reader, or to the size limit."""
        self._ring = ring
        self._bytes = ring.segment.bytes_
        self._words = ring.segment.words
        self._capacity = ring.capacity
        self._seal = ring.seal
        self._fence = layout.new_fence()
        self._parts: list[bytes] | None = None
        self._parts_bytes = 0
        self._rung = 0
        self._torn_since = 0.0
        self._head = self._words[HEAD]
        self._words[SLEEPS] += self._words[SLEEPS] & 1
        self._wake_writer()

    def ready(self) -> bool:
        """True when records wait; they may still be fragments of an unfinished message."""
        return self._words[TAIL] != self._head

    def receive(self) -> list[bytes]:
        """All messages that are complete now, oldest first; never waits.

        Raises ProtocolError when a record stays unreadable for a second: the memory was overwritten by
        someone; `skip_all` goes on behind it.
        """
        tail, messages = self._words[TAIL], list[bytes]()
        if tail == self._head:
            return messages
        while self._head != tail:
            record = self._read(tail)
            if record is None:
                break
            self._join(*record, messages)
        self._words[HEAD] = self._head
        self._fence()
        self._wake_writer()
        return messages

    def skip_all(self) -> int:
        """Drops everything written so far, such as what a dead reader left; returns the bytes skipped."""
        tail = self._words[TAIL]
        skipped = int(tail - self._head)
        self._parts, self._head, self._torn_since = None, tail, 0.0
        self._words[HEAD] = tail
        self._fence()
        self._wake_writer()
        return skipped

    def arm(self) -> bool:
        """Declares sleep: from now on a message makes `fileno()` readable. False if records wait already."""
        if self.ready():
            return False
        self._words[SLEEPS] |= 1
        self._fence()
        if self.ready():
            self.disarm()
            return False
        return True

    def disarm(self) -> None:
        """Ends the sleep and silences the bell; call it after every successful `arm`."""
        self._words[SLEEPS] += self._words[SLEEPS] & 1
        self._ring.message_bell.clear()

    def fileno(self) -> int:
        return self._ring.message_bell.read_fd

    def close(self) -> None:
        """Closes the ring in this process."""
        self._ring.close()

    def _read(self, tail: int) -> tuple[int, bytes] | None:
        """The flags and payload of the record at the head, which moves on; None if it is torn."""
        data, capacity, head = self._bytes, self._capacity, self._head
        offset = layout.CONTROL_BYTES + head % capacity
        word, seal = HEADER.unpack_from(data, offset)
        length = word & layout.LENGTH_MASK
        size = layout.record_bytes(length)
        if head + size > tail:
            self._note_torn()
            return None
        start = offset + HEADER_BYTES
        overhang = start + length - layout.CONTROL_BYTES - capacity
        payload = data[start : start + length]
        if overhang > 0:
            start = layout.CONTROL_BYTES
            payload += data[start : start + overhang]  # the first slice ended with the mapping
        if seal != self._seal(word, head, payload):
            self._note_torn()
            return None
        self._head = head + size
        self._torn_since = 0.0
        return word & WHOLE, payload

    def _note_torn(self) -> None:
        now = time.monotonic()
        if not self._torn_since:
            self._torn_since = now
        elif now - self._torn_since > _TORN_READ_SECONDS:
            raise ProtocolError(f"the ring record at byte {self._head} is damaged")

    def _join(self, flags: int, payload: bytes, messages: list[bytes]) -> None:
        if flags & FIRST and self._parts is not None:  # its writer died before the last fragment
            self._parts = None
            self.dropped += 1
        if flags == WHOLE:
            messages.append(payload)
            return
        if flags & FIRST:
            self._parts, self._parts_bytes = [], 0
        if self._parts is None:  # the rest of a message whose start we never saw, or that grew too large
            self.dropped += bool(flags & LAST)
            return
        self._parts_bytes += len(payload)
        if self._parts_bytes > self.max_message_bytes:
            self._parts = None
            self.dropped += bool(flags & LAST)
            return
        self._parts.append(payload)
        if flags & LAST:
            messages.append(b"".join(self._parts))
            self._parts = None

    def _wake_writer(self) -> None:
        starves = self._words[STARVES]
        if starves & 1 and starves != self._rung:
            self._rung = starves
            self._ring.room_bell.ring()
