"""One ring within one process: order, content, wrap-around, fragments, limits, backlog."""

import os
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.errors import Backpressure, ConfigError, ProtocolError
from lightllm.ipc import Ring, RingHandle, RingReader, RingWriter, layout

CAPACITY = 1024
SIZES = st.one_of(
    st.sampled_from([0, 1, 7, 8, 9, 240, 247, 248, 249, 250, 1015, 1016, 1017, 1023, 1024, 1025, 5000]),
    st.integers(0, 3000),
)


@pytest.fixture(params=[False, True], ids=["position", "checksum"])
def ring(request):
    ring = Ring.create(CAPACITY, checksum=request.param)
    yield ring
    ring.close()


def drain(writer, reader):
    messages = []
    while True:
        empty = writer.flush()
        batch = reader.receive()
        messages += batch
        if empty and not batch and not reader.ready():
            return messages


@given(steps=st.lists(st.tuples(SIZES, st.booleans()), max_size=60), checksum=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_sizes_arrives_in_order(steps, checksum):
    ring = Ring.create(CAPACITY, checksum=checksum)
    writer, reader = RingWriter(ring), RingReader(ring)
    sent, received = [], []
    for index, (size, read) in enumerate(steps):
        sent.append(random.Random(index).randbytes(size))
        writer.send(sent[-1])
        if read:
            received += reader.receive()
    received += drain(writer, reader)
    assert received == sent
    assert reader.dropped == 0
    assert writer.pending_bytes == 0
    ring.close()


def test_one_megabyte_crosses_a_small_ring(ring):
    writer, reader = RingWriter(ring), RingReader(ring)
    message = random.Random(0).randbytes(1 << 20)
    writer.send(message)
    writer.send(b"next")
    assert drain(writer, reader) == [message, b"next"]


def test_too_large_a_message_is_refused_and_the_others_pass(ring):
    writer, reader = RingWriter(ring, max_message_bytes=100), RingReader(ring)
    writer.send(b"before")
    with pytest.raises(ProtocolError, match=r"101 bytes .* 100 bytes"):
        writer.send(b"x" * 101)
    writer.send(b"after")
    assert reader.receive() == [b"before", b"after"]


def test_reader_bounds_what_it_joins(ring):
    writer, reader = RingWriter(ring), RingReader(ring, max_message_bytes=2000)
    writer.send(b"x" * 2001)
    writer.send(b"y" * 2000)
    assert drain(writer, reader) == [b"y" * 2000]
    assert reader.dropped == 1


def test_full_ring_spills_and_then_pushes_back(ring):
    writer, reader = RingWriter(ring, backlog_bytes=1000), RingReader(ring)
    sent = []
    with pytest.raises(Backpressure, match="1000 bytes"):
        while True:
            writer.send(len(sent).to_bytes(2, "little") * 50)
            sent.append(len(sent).to_bytes(2, "little") * 50)
    assert CAPACITY + 1000 - 200 < 100 * len(sent) <= CAPACITY + 1000 + 100  # and the one under way
    assert not writer.flush()
    assert drain(writer, reader) == sent
    writer.send(b"again")
    assert reader.receive() == [b"again"]


def test_a_message_larger_than_the_backlog_does_not_push_back_those_behind_it(ring):
    writer, reader = RingWriter(ring, backlog_bytes=1000), RingReader(ring)
    writer.send(b"a" * 50_000)
    behind = [bytes([number]) * 100 for number in range(10)]
    for message in behind:
        writer.send(message)
    with pytest.raises(Backpressure, match="1000 bytes wait"):
        writer.send(b"b")
    assert drain(writer, reader) == [b"a" * 50_000, *behind]


def test_an_error_sends_nothing_of_the_message(ring):
    writer, reader = RingWriter(ring, backlog_bytes=10), RingReader(ring)
    writer.send(b"a" * 5000)  # larger than the ring: waits in the empty backlog
    with pytest.raises(Backpressure):
        writer.send(b"b" * 5000)
    assert drain(writer, reader) == [b"a" * 5000]


def test_mutable_data_may_change_after_send(ring):
    writer, reader = RingWriter(ring), RingReader(ring)
    data = bytearray(b"x" * 3000)
    writer.send(data)
    data[:] = b"y" * 3000
    assert drain(writer, reader) == [b"x" * 3000]


def test_unpublished_bytes_are_never_seen(ring):
    writer, reader = RingWriter(ring), RingReader(ring)
    writer._put(layout.WHOLE, b"half")
    assert not reader.ready()
    assert reader.receive() == []
    successor = RingWriter(ring)
    successor.send(b"whole")
    assert reader.receive() == [b"whole"]


def test_half_a_fragmented_message_is_not_glued_to_the_next(ring):
    writer, reader = RingWriter(ring), RingReader(ring)
    writer.send(b"a" * 5000)  # a few fragments are published, then the writer dies
    assert reader.receive() == []
    successor = RingWriter(ring)
    successor.send(b"b" * 5000)
    successor.send(b"c")
    assert drain(successor, reader) == [b"b" * 5000, b"c"]
    assert reader.dropped == 1


def test_reader_that_joins_in_the_middle_drops_the_rest_of_the_message(ring):
    writer, first = RingWriter(ring), RingReader(ring)
    writer.send(b"a" * 5000)
    assert first.receive() == []  # took some fragments to its grave
    second = RingReader(ring)
    writer.send(b"b")
    assert drain(writer, second) == [b"b"]
    assert second.dropped == 1


def test_skip_all_drops_what_was_left(ring):
    writer = RingWriter(ring)
    for _ in range(4):
        writer.send(b"stale" * 10)
    reader = RingReader(ring)
    assert reader.skip_all() == 4 * layout.record_bytes(50)
    assert reader.skip_all() == 0
    writer.send(b"fresh")
    assert reader.receive() == [b"fresh"]


def test_late_payload_is_waited_for():
    """As on a machine that shows the tail before the payload."""
    ring = Ring.create(CAPACITY, checksum=True)
    writer, reader = RingWriter(ring), RingReader(ring)
    writer.send(b"early")
    writer.send(b"payload")
    at = layout.CONTROL_BYTES + layout.record_bytes(5) + layout.HEADER_BYTES
    ring.segment.bytes_[at : at + 7] = bytes(7)
    assert reader.receive() == [b"early"]
    assert reader.receive() == []
    assert reader.ready()
    ring.segment.bytes_[at : at + 7] = b"payload"
    assert reader.receive() == [b"payload"]
    ring.close()


def test_damage_is_an_error_and_skip_all_recovers(ring, monkeypatch):
    monkeypatch.setattr("lightllm.ipc.ring._TORN_READ_SECONDS", 0.0)
    writer, reader = RingWriter(ring), RingReader(ring)
    writer.send(b"payload")
    ring.segment.bytes_[layout.CONTROL_BYTES + 4] ^= 1
    reader.receive()
    with pytest.raises(ProtocolError, match="damaged"):
        reader.receive()
    reader.skip_all()
    writer.send(b"healthy")
    assert reader.receive() == [b"healthy"]


def test_a_busy_pair_never_rings(ring, monkeypatch):
    monkeypatch.setattr("lightllm.ipc.doorbell.Doorbell.ring", lambda bell: pytest.fail("rang"))
    writer, reader = RingWriter(ring), RingReader(ring)
    for _ in range(100):
        writer.send(b"x" * 30)
        assert reader.receive()


def test_one_sleep_is_one_ring(ring, monkeypatch):
    rings = []
    monkeypatch.setattr("lightllm.ipc.doorbell.Doorbell.ring", lambda bell: rings.append(bell))
    writer, reader = RingWriter(ring), RingReader(ring)
    for _ in range(3):
        assert reader.arm()
        for _ in range(5):
            writer.send(b"x")
        reader.disarm()
        reader.receive()
    assert rings == [ring.message_bell] * 3


def test_attaching_to_something_else_is_refused():
    ring = Ring.create(CAPACITY)
    ring.segment.words[layout.MAGIC_WORD] = 0
    handle = msgspec.structs.replace(ring.handle(), memory=os.dup(ring.segment.fd))
    with pytest.raises(ProtocolError, match="not a lightllm ring"):
        Ring.attach(handle)
    ring.close()


@pytest.mark.parametrize("capacity", [0, 127, (1 << 30) + 1])
def test_capacity_has_limits(capacity):
    with pytest.raises(ConfigError, match=f"got {capacity}"):
        Ring.create(capacity)


def test_handle_is_json():
    ring = Ring.create(CAPACITY)
    assert RingHandle.from_json(ring.handle().to_json()) == ring.handle()
    ring.close()


def test_closing_leaves_no_descriptor():
    before = set(os.listdir("/proc/self/fd"))
    rings = [Ring.create(CAPACITY) for _ in range(5)]
    assert set(os.listdir("/proc/self/fd")) > before
    for ring in rings:
        ring.close()
        ring.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_linux_calls(monkeypatch):
    """The paths of other systems: an unlinked file and pipes."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.delattr(os, "eventfd", raising=False)
    ring = Ring.create(CAPACITY)
    writer, reader = RingWriter(ring), RingReader(ring)
    assert len(set(ring.fds)) == 5
    assert reader.arm()
    writer.send(b"x" * 3000)
    reader.disarm()
    assert drain(writer, reader) == [b"x" * 3000]
    ring.close()
