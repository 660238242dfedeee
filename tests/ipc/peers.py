"""Child processes of the ring tests: `python peers.py ROLE HANDLE [ARGUMENT ...]`, and how to start one.

A numbered message is `number, length, number % 251 repeated`, so a reader sees any loss, disorder or mixture.
"""

import asyncio
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import lightllm.ipc
from lightllm.errors import Backpressure
from lightllm.ipc import Ring, RingHandle, RingReader, RingReceiver, RingWriter, wait_any

ROOT = Path(lightllm.ipc.__file__).parents[2]
NUMBER = struct.Struct("<QQ")
LENGTHS = (0, 1, 17, 100, 3000, 9000, 40_000)


def numbered(number: int, length: int) -> bytes:
    return NUMBER.pack(number, length) + bytes([number % 251]) * length


def number_of(message: bytes) -> int:
    """The number of a message, which must be whole."""
    number, length = NUMBER.unpack_from(message)
    assert message == numbered(number, length)
    return int(number)


def start(role: str, *rings: Ring, arguments: tuple[object, ...] = ()) -> "subprocess.Popen[str]":
    handles = "\n".join(ring.handle().to_json() for ring in rings)
    command = [sys.executable, __file__, role, handles, *map(str, arguments)]
    fds = [fd for ring in rings for fd in ring.fds]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, pass_fds=fds, env=environment, stdout=subprocess.PIPE, text=True)


def write_forever(ring: Ring, first: str) -> None:
    """Numbered messages of many lengths until killed; waits for room like a well-behaved writer."""
    writer = RingWriter(ring, backlog_bytes=20_000)
    number = int(first)
    while True:
        try:
            writer.send(numbered(number, LENGTHS[number % len(LENGTHS)]))
            number += 1
        except Backpressure:
            writer.flush()


def write(ring: Ring, count: str) -> None:
    """`count` short messages as fast as they go; sleeps on the room bell when the backlog is full."""
    writer = RingWriter(ring, backlog_bytes=100_000)
    for number in range(int(count)):
        message = numbered(number, number % 23)
        try:
            writer.send(message)
        except Backpressure:
            while not writer.flush():
                ready, _, _ = select.select([writer], [], [], 5.0)
                assert ready, "the writer was not woken although the reader makes room"
            writer.send(message)
    while not writer.flush():
        select.select([writer], [], [], 5.0)


def read_forever(ring: Ring) -> None:
    reader = RingReader(ring)
    while True:
        wait_any([reader])
        for message in reader.receive():
            number_of(message)


def echo(ring: Ring, answers: Ring, count: str) -> None:
    """Sends every message back; used to find lost wake-ups."""
    reader, writer = RingReader(ring), RingWriter(answers)
    done = 0
    while done < int(count):
        assert wait_any([reader], 10.0), "woken by nobody"
        for message in reader.receive():
            writer.send(message)
            done += 1


def idle(ring: Ring, seconds: str) -> None:
    """Prints the processor seconds used while waiting `seconds` for nothing, in a thread and in asyncio."""
    receiver = RingReceiver(RingReader(ring), bytes)
    begin = time.process_time()
    receiver.wait(float(seconds))
    in_thread = time.process_time() - begin

    async def wait() -> float:
        begin = time.process_time()
        try:
            await asyncio.wait_for(receiver.next(), float(seconds))
        except TimeoutError:
            return time.process_time() - begin
        raise AssertionError("received out of nothing")

    print(in_thread, asyncio.run(wait()), flush=True)


def inherited(ring: Ring) -> None:
    """Prints how many descriptors would survive another exec."""
    print(sum(os.get_inheritable(fd) for fd in ring.fds), len(ring.fds), flush=True)


if __name__ == "__main__":
    handles = [Ring.attach(RingHandle.from_json(line)) for line in sys.argv[2].splitlines()]
    globals()[sys.argv[1]](*handles, *sys.argv[3:])
