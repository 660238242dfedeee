"""Channels over TCP on loopback: order, secrets, refusals."""

import asyncio
import time

import pytest

from lightllm.errors import Backpressure, ConfigError, ProtocolError

zmq = pytest.importorskip("zmq")
from lightllm.ipc import wait_any  # noqa: E402
from lightllm.ipc.sockets import SocketReceiver, SocketSender  # noqa: E402

SECRET = b"sixteen bytes or more"
curve = pytest.mark.skipif(not zmq.has("curve"), reason="this ZeroMQ has no CURVE")


@pytest.fixture
def opened():
    sockets = []
    yield lambda socket: (sockets.append(socket), socket)[1]
    for socket in sockets:
        socket.close()


def pair(opened, secret=None):
    receiver = opened(SocketReceiver("tcp://127.0.0.1:0", bytes, secret=secret))
    return opened(SocketSender(receiver.address, bytes, secret=secret)), receiver


def receive(receiver, count):
    messages, deadline = [], time.monotonic() + 10
    while len(messages) < count and time.monotonic() < deadline:
        receiver.wait(1)
        messages += receiver.receive()
    return messages


@pytest.mark.parametrize("secret", [None, pytest.param(SECRET, marks=curve)])
def test_messages_arrive_in_order(opened, secret):
    sender, receiver = pair(opened, secret)
    sent = [bytes([number % 251]) * number for number in range(500)]
    for message in sent:
        sender.send(message)
    assert sender.flush()
    assert receive(receiver, len(sent)) == sent


@curve
@pytest.mark.parametrize("wrong", [None, b"another secret of enough bytes"])
def test_a_peer_without_the_secret_is_not_heard(opened, wrong):
    sender, receiver = pair(opened, SECRET)
    stranger = opened(SocketSender(receiver.address, bytes, secret=wrong))
    stranger.send(b"let me in")
    sender.send(b"friend")
    assert receive(receiver, 1) == [b"friend"]
    assert not receiver.wait(0.2)


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://192.0.2.1:5555", "tcp://example.com:5555"])
@pytest.mark.parametrize("end", [SocketReceiver, SocketSender])
def test_other_hosts_need_a_secret(address, end):
    with pytest.raises(ConfigError, match="shared secret is required"):
        end(address, bytes)


def test_short_secret_is_refused():
    with pytest.raises(ConfigError, match=r"16 bytes, got 5"):
        SocketReceiver("tcp://127.0.0.1:0", bytes, secret=b"short")


@pytest.mark.parametrize("address", ["ipc:///run/x", "127.0.0.1:80", "tcp://"])
def test_bad_address_is_refused(address):
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        SocketReceiver(address, bytes)


def test_port_in_use_is_refused(opened):
    _, receiver = pair(opened)
    with pytest.raises(ConfigError, match="cannot listen on"):
        SocketReceiver(receiver.address, bytes)


def test_an_absent_peer_pushes_back(opened):
    sender = opened(SocketSender("tcp://127.0.0.1:9", bytes, backlog=5))
    with pytest.raises(Backpressure, match="5 messages"):
        for _ in range(10):
            sender.send(b"x")


def test_too_large_a_message_is_refused(opened):
    sender = opened(SocketSender("tcp://127.0.0.1:9", bytes, max_message_bytes=10))
    with pytest.raises(ProtocolError, match="11 bytes"):
        sender.send(b"x" * 11)


def test_bad_messages_are_skipped(opened):
    bad = []
    receiver = opened(SocketReceiver("tcp://127.0.0.1:0", int, on_bad=lambda data, error: bad.append(data)))
    sender = opened(SocketSender(receiver.address, bytes))
    for data in (b"1", b"one", b"2"):
        sender.send(data)
    assert receive(receiver, 2) == [1, 2]
    assert bad == [b"one"]


def test_waiting_with_others_and_in_asyncio(opened):
    sender, receiver = pair(opened)
    sender.send(b"a")
    assert wait_any([receiver], 10) == [receiver]
    assert receiver.receive() == [b"a"]

    async def scenario():
        asyncio.get_running_loop().call_later(0.02, sender.send, b"b")
        return await asyncio.wait_for(receiver.next(), 10)

    assert asyncio.run(scenario()) == [b"b"]
