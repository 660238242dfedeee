"""Typed channels: codecs, bad messages, the in-process twin."""

import logging
import threading

import msgspec
import pytest

from lightllm.ipc import Ring, RingReader, RingReceiver, RingSender, RingWriter, local_channel


class Note(msgspec.Struct, frozen=True):
    number: int
    text: str


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Note).decode


@pytest.fixture
def ring():
    ring = Ring.create(4096)
    yield ring
    ring.close()


def test_ring_channel_carries_messages(ring):
    sender = RingSender(RingWriter(ring), encode)
    receiver = RingReceiver(RingReader(ring), decode)
    notes = [Note(number, "né" * number) for number in range(20)]
    for note in notes:
        sender.send(note)
    assert sender.flush()
    assert receiver.receive() == notes
    assert receiver.receive() == []


def test_a_bad_message_is_reported_and_skipped(ring):
    bad = []
    writer = RingWriter(ring)
    receiver = RingReceiver(RingReader(ring), decode, lambda data, error: bad.append((data, error)))
    writer.send(encode(Note(1, "a")))
    writer.send(b"\xc1 no message")
    writer.send(encode({"number": "no number", "text": "b"}))
    writer.send(encode(Note(2, "c")))
    assert receiver.receive() == [Note(1, "a"), Note(2, "c")]
    assert [data for data, _ in bad] == [b"\xc1 no message", encode({"number": "no number", "text": "b"})]
    assert all(isinstance(error, msgspec.MsgspecError) for _, error in bad)


def test_the_log_says_a_message_was_bad_but_not_what_it_said(ring, caplog):
    RingWriter(ring).send(b"\xc1 secret")
    with caplog.at_level(logging.WARNING):
        assert RingReceiver(RingReader(ring), decode).receive() == []
    assert "8 bytes" in caplog.text
    assert "secret" not in caplog.text


def test_local_channel_passes_the_object_itself():
    sender, receiver = local_channel()
    note = object()
    sender.send(note)
    assert sender.flush()
    assert receiver.receive()[0] is note


def test_strict_local_channel_uses_the_codec():
    bad = []
    sender, receiver = local_channel(encode, decode, strict=True, on_bad=lambda data, error: bad.append(data))
    sender.send(Note(1, "a"))
    with pytest.raises(TypeError):
        sender.send(object())
    sender.send({"number": 1})
    assert receiver.receive() == [Note(1, "a")]
    assert len(bad) == 1


def test_strict_needs_a_codec():
    with pytest.raises(ValueError, match="strict needs"):
        local_channel(strict=True)


def test_local_channel_between_threads_loses_nothing():
    sender, receiver = local_channel()
    count, senders = 5000, 3

    def send(start):
        for number in range(count):
            sender.send((start, number))

    threads = [threading.Thread(target=send, args=(start,)) for start in range(senders)]
    for thread in threads:
        thread.start()
    received = []
    while len(received) < count * senders:
        assert receiver.wait(10)
        received += receiver.receive()
    for thread in threads:
        thread.join()
    for start in range(senders):
        assert [number for origin, number in received if origin == start] == list(range(count))
    receiver.close()
