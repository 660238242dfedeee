"""Rings between real processes: order under load, lost wake-ups, SIGKILL at any moment, idle cost."""

import os
import random
import time

import peers
import pytest

from lightllm.ipc import Ring, RingReader, RingWriter, wait_any


@pytest.fixture
def ring():
    ring = Ring.create(64 << 10)
    yield ring
    ring.close()


@pytest.fixture
def started():
    """Collects children; kills and reaps those still alive."""
    children = []
    yield children
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


def receive_until(reader, done, seconds=20.0):
    """Numbers received in order until `done(numbers)`."""
    numbers, deadline = [], time.monotonic() + seconds
    while not done(numbers):
        assert time.monotonic() < deadline, f"only {len(numbers)} messages in {seconds} s"
        wait_any([reader], 1.0)
        numbers += [peers.number_of(message) for message in reader.receive()]
    return numbers


@pytest.mark.parametrize("checksum", [False, True])
def test_200k_messages_in_order(started, checksum):
    ring, count = Ring.create(64 << 10, checksum=checksum), 200_000
    started.append(peers.start("write", ring, arguments=(count,)))
    assert receive_until(RingReader(ring), lambda numbers: len(numbers) >= count) == list(range(count))
    assert started[0].wait(10) == 0
    ring.close()


def test_no_wake_up_is_lost(started, monkeypatch):
    monkeypatch.setattr("lightllm.ipc.waiting.BACKSTOP", 60.0)  # a lost wake-up must not heal itself
    questions, answers, count = Ring.create(4096), Ring.create(4096), 5000
    started.append(peers.start("echo", questions, answers, arguments=(count,)))
    writer, reader = RingWriter(questions), RingReader(answers)
    generator = random.Random(0)
    for number in range(count):
        writer.send(peers.numbered(number, 8))
        for _ in range(generator.randrange(200)):  # meet the peer in every phase of falling asleep
            pass
        assert wait_any([reader], 10.0), f"no answer to message {number}"
        assert [peers.number_of(message) for message in reader.receive()] == [number]
    questions.close()
    answers.close()


def test_writer_killed_at_any_moment(ring, started):
    """Each successor starts at its own thousand million, so a message of two writers would show."""
    reader, generator = RingReader(ring), random.Random(1)
    for life in range(6):
        first = life * 10**9
        child = peers.start("write_forever", ring, arguments=(first,))
        started.append(child)
        numbers = receive_until(reader, bool)
        deadline = time.monotonic() + generator.uniform(0.0, 0.05)
        while time.monotonic() < deadline:
            numbers += [peers.number_of(message) for message in reader.receive()]
        child.kill()
        child.wait()
        numbers += [peers.number_of(message) for message in reader.receive()]
        assert numbers == list(range(first, first + len(numbers)))
    assert reader.dropped <= 6
    successor = RingWriter(ring)
    successor.send(peers.numbered(7, 100))
    assert receive_until(reader, bool) == [7]


def test_reader_killed_at_any_moment(ring, started):
    writer, generator, number = RingWriter(ring), random.Random(2), 0
    for _ in range(5):
        child = peers.start("read_forever", ring)
        started.append(child)
        deadline = time.monotonic() + 0.15 + generator.uniform(0.0, 0.05)
        while time.monotonic() < deadline:
            if writer.flush():
                writer.send(peers.numbered(number, peers.LENGTHS[number % len(peers.LENGTHS)]))
                number += 1
        child.kill()
        child.wait()
        assert child.returncode == -9, "the reader saw a broken message"
    reader = RingReader(ring)
    reader.skip_all()
    while not writer.flush():
        reader.receive()
    reader.receive()
    writer.send(peers.numbered(number, 5))
    assert [peers.number_of(message) for message in reader.receive()] == [number]


def test_killed_children_leave_nothing(ring, started):
    before = set(os.listdir("/proc/self/fd"))
    for role, arguments in (("write_forever", (0,)), ("read_forever", ())):
        child = peers.start(role, ring, arguments=arguments)
        time.sleep(0.1)
        child.kill()
        child.wait()
        child.stdout.close()
    assert set(os.listdir("/proc/self/fd")) == before
    maps = os.readlink(f"/proc/self/fd/{ring.fds[0]}")
    assert maps.endswith("(deleted)"), f"the memory has a name: {maps}"


def test_inherited_descriptors_stop_at_the_child(ring, started):
    started.append(peers.start("inherited", ring))
    assert started[0].stdout.readline().split() == ["0", str(len(ring.fds))]


def test_waiting_costs_nothing(ring, started):
    started.append(peers.start("idle", ring, arguments=(1.2,)))
    in_thread, in_asyncio = map(float, started[0].stdout.readline().split())
    assert in_thread < 0.02
    assert in_asyncio < 0.02
