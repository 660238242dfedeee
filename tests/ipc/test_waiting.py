"""Sleeping on several receivers, on a writer's room, and in asyncio."""

import asyncio
import threading
import time

import pytest

from lightllm.ipc import Poller, Ring, RingReceiver, RingSender, drain, local_channel, wait_any
from lightllm.ipc.ring import RingReader, RingWriter


@pytest.fixture
def ring():
    ring = Ring.create(1024)
    yield ring
    ring.close()


@pytest.fixture(params=["ring", "local"])
def channel(request, ring):
    if request.param == "local":
        sender, receiver = local_channel()
    else:
        sender = RingSender(RingWriter(ring), bytes)
        receiver = RingReceiver(RingReader(ring), bytes)
    yield sender, receiver
    receiver.close()


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_wait_returns_at_once_when_something_is_there(channel):
    sender, receiver = channel
    sender.send(b"x")
    assert receiver.wait(0)
    assert receiver.receive() == [b"x"]
    assert not receiver.wait(0)


def test_wait_wakes_up(channel):
    sender, receiver = channel
    timer = later(0.05, lambda: sender.send(b"x"))
    begin = time.monotonic()
    assert receiver.wait(10)
    assert 0.04 < time.monotonic() - begin < 5
    assert receiver.receive() == [b"x"]
    timer.join()


def test_wait_gives_up(channel, monkeypatch):
    monkeypatch.setattr("lightllm.ipc.waiting.BACKSTOP", 0.02)  # several second looks on the way
    begin = time.monotonic()
    assert not channel[1].wait(0.1)
    assert time.monotonic() - begin >= 0.1


def test_an_old_ring_does_not_end_the_next_sleep(channel):
    sender, receiver = channel
    assert receiver.arm()
    sender.send(b"x")
    receiver.disarm()
    receiver.receive()
    begin = time.monotonic()
    assert not receiver.wait(0.05)
    assert time.monotonic() - begin >= 0.05


def test_wait_any_names_who_is_ready(ring):
    _, silent = local_channel()
    sender, local = local_channel()
    receiver = RingReceiver(RingReader(ring), bytes)
    receivers = [silent, receiver, local]
    assert wait_any(receivers, 0) == []
    timer = later(0.02, lambda: RingSender(RingWriter(ring), bytes).send(b"x"))
    assert wait_any(receivers, 10) == [receiver]
    sender.send(b"y")
    assert wait_any(receivers, 10) == [receiver, local]
    timer.join()
    silent.close()
    local.close()


def test_poller_moves_a_backlog_while_it_sleeps(ring):
    sender = RingSender(RingWriter(ring), bytes)
    far_end = RingReader(ring)
    message = bytes(range(256)) * 20
    sender.send(message)
    sender.send(b"after")
    received = []

    def read():
        while b"after" not in received:
            wait_any([far_end], 5)
            received.extend(far_end.receive())
        wake.send(b"done")

    wake, receiver = local_channel()
    reading = threading.Thread(target=read)
    reading.start()
    poller = Poller([receiver], [sender, wake])
    assert poller.wait(10) == [receiver]
    reading.join()
    assert received == [message, b"after"]
    assert sender.writer.pending_bytes == 0
    receiver.close()


def test_writer_is_woken_once_there_is_room(ring, monkeypatch):
    writer, reader = RingWriter(ring), RingReader(ring)
    rings = []
    ring_bell = type(ring.room_bell).ring
    monkeypatch.setattr(type(ring.room_bell), "ring", lambda bell: (rings.append(bell), ring_bell(bell)))
    for _ in range(20):
        writer.send(b"x" * 100)
    assert not writer.flush()
    received = reader.receive()
    assert rings == [ring.room_bell]
    assert writer.flush() is False
    while not writer.flush():
        received += reader.receive()
    received += reader.receive()
    assert received == [b"x" * 100] * 20


def test_async_stream(channel):
    sender, receiver = channel

    async def read():
        numbers = []
        async for batch in receiver.stream():
            numbers += batch
            if len(numbers) == 500:
                return numbers

    def write():
        for number in range(500):
            sender.send(number.to_bytes(2, "little"))
            sender.flush()
            if number % 50 == 0:
                time.sleep(0.002)
        while not sender.flush():
            time.sleep(0.001)

    writing = threading.Thread(target=write)
    writing.start()
    numbers = asyncio.run(asyncio.wait_for(read(), 10))
    writing.join()
    assert numbers == [number.to_bytes(2, "little") for number in range(500)]


def test_cancelled_next_loses_nothing(channel):
    sender, receiver = channel

    async def scenario():
        for _ in range(20):
            task = asyncio.create_task(receiver.next())
            await asyncio.sleep(0)
            sender.send(b"x")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await receiver.next() == [b"x"]

    asyncio.run(scenario())


def test_a_busy_stream_lets_others_run(channel):
    sender, receiver = channel

    async def scenario():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(50):
            sender.send(b"x")
            await receiver.next()
        task.cancel()
        return turns

    assert asyncio.run(scenario()) >= 50


def test_async_drain_waits_for_room(ring):
    sender = RingSender(RingWriter(ring), bytes)
    reader = RingReader(ring)
    message = b"x" * 5000

    async def scenario():
        sender.send(message)
        draining = asyncio.create_task(drain(sender))
        received = []
        while not received:
            await asyncio.sleep(0.001)
            received = reader.receive()
        await asyncio.wait_for(draining, 5)
        return received

    assert asyncio.run(scenario()) == [message]
