"""The bytes of a ring: control words, record header, seal, fence.

Knows where each number lies and how a record proves that it is whole. It moves no data; `ring` does.

    byte 0        64       128      192       256       4096                                   4096 + capacity
         ├────────┼────────┼────────┼─────────┼── ... ──┼──────────────────────────────────────┤
         │ magic  │ tail   │ head   │ reader  │ writer  │ record │ record │ ... free ... │ re- │
         │capacity│        │        │ sleeps  │ starves │ cord   (a payload may wrap around)  │
         ├────────┼────────┼────────┼─────────┼── ... ──┼──────────────────────────────────────┤
    written by: creator  writer   reader    reader    writer   writer

    record (8-byte aligned):   0           4           8                     8 + length, padded to 8
                               ├───────────┼───────────┼─────────────────────┤
                               │ length 30 │ seal      │ payload             │
                               │ + 2 flags │           │                     │
                               └───────────┴───────────┴─────────────────────┘

`tail` and `head` are byte counts that only grow; `position % capacity` is the offset in the data. Every word
has one writing process and a cache line of its own. `sleeps` and `starves` are counters: odd means "ring me",
and the other side rings once per odd value, so a waiting process costs its peer one system call, not one per
message.

Ordering. A record becomes visible by the store of `tail`, the last one. x86-64 keeps stores in order, so
there the seal is only the record's own position (a leftover of an earlier lap never passes for a record).
arm64 may show `tail` before the payload, so there the seal is a CRC over length, position and payload: a torn
record fails it and is read again. Checking the CRC before storing `head` also orders the reader's loads.
"""

import platform
import struct
import threading
import zlib
from collections.abc import Callable
from typing import Final

MAGIC: Final = 0x6C6C6D5F72696E31
CONTROL_BYTES: Final = 4096
HEADER: Final = struct.Struct("<II")
HEADER_BYTES: Final = HEADER.size

# Indices of 8-byte words; 8 words are one cache line.
MAGIC_WORD: Final = 0
CAPACITY_WORD: Final = 1
CHECKSUM_WORD: Final = 2
TAIL: Final = 8
HEAD: Final = 16
SLEEPS: Final = 24
STARVES: Final = 32

FIRST: Final = 1 << 31
LAST: Final = 1 << 30
WHOLE: Final = FIRST | LAST
LENGTH_MASK: Final = LAST - 1
_U32: Final = 0xFFFFFFFF

Seal = Callable[[int, int, bytes], int]


def stores_stay_ordered() -> bool:
    """True on machines whose stores become visible in program order."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686", "i386")


def record_bytes(length: int) -> int:
    """Bytes a record with `length` bytes of payload takes."""
    return HEADER_BYTES + (length + 7 & ~7)


def position_seal(word: int, position: int, payload: bytes) -> int:
    return position >> 3 & _U32


def checksum_seal(word: int, position: int, payload: bytes) -> int:
    return zlib.crc32(payload, (position >> 3 ^ word) & _U32)


def new_fence() -> Callable[[], None]:
    """A function that orders the stores before its call against the loads after it; for one thread only.

    Python has no fence of its own. Taking a free lock is a locked instruction, which on x86-64 is a full
    barrier and on arm64 one in practice; sleeps are backed by a rare second look (`waiting.BACKSTOP`) too.
    The lock is never shared: failing to take a held one would order nothing.
    """
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence
