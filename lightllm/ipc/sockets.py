"""Channels across hosts: the same messages over ZeroMQ, encrypted with a shared secret.

Knows addresses and keys. Within a host use rings: they need no key and cost a tenth. pyzmq is imported here
only, so that nothing else depends on it.

Both ends derive the listener's CURVE key pair from the secret. A peer must know the listener's public key to
say even its first word, and that key never crosses the wire in clear, so knowing the secret is what lets a
peer in; both directions are encrypted. Only loopback addresses may be used without a secret.
"""

import hashlib
import ipaddress
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import zmq
from zmq.utils import z85

from lightllm.errors import Backpressure, ConfigError, ProtocolError
from lightllm.ipc.channel import Decode, OnBad, Sender, decode_all, log_bad
from lightllm.ipc.ring import MAX_MESSAGE_BYTES
from lightllm.ipc.waiting import Receiver

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
SHORTEST_SECRET = 16
_LINGER_MS = 1000


class SocketSender(Sender[T_contra]):
    """Pushes messages to the receiver it connects to; while that is away, up to `backlog` messages wait."""

    def __init__(
        self,
        address: str,
        encode: Callable[[T_contra], bytes],
        *,
        secret: bytes | None = None,
        backlog: int = 10_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """`address` is tcp://HOST:PORT. Raises ConfigError for a bad one or a missing secret."""
        self.max_message_bytes = max_message_bytes
        self._encode = encode
        self._backlog = backlog
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, backlog)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        _open(self._socket, address, secret, listen=False)

    def send(self, message: T_contra) -> None:
        data = self._encode(message)
        if len(data) > self.max_message_bytes:
            raise ProtocolError(f"message of {len(data)} bytes is over the limit of {self.max_message_bytes} bytes")
        try:
            self._socket.send(data, zmq.DONTWAIT)
        except zmq.Again:
            raise Backpressure(f"the peer is away or slow; {self._backlog} messages wait for it") from None

    def flush(self) -> bool:
        """True: ZeroMQ moves its own backlog."""
        return True

    def fileno(self) -> None:
        """Nothing waits on this side of ZeroMQ."""

    def close(self) -> None:
        """Waits in the background up to a second for the backlog to leave."""
        self._socket.close()


class SocketReceiver(Receiver[T]):
    """Listens and pulls messages of any number of senders; the order of each sender is kept."""

    def __init__(
        self,
        address: str,
        decode: Decode[T],
        *,
        secret: bytes | None = None,
        on_bad: OnBad = log_bad,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """`address` is tcp://IP:PORT; port 0 picks a free one. Raises ConfigError for a bad one, a missing
        secret or a port in use. A peer that sends more than `max_message_bytes` at once is cut off."""
        self._decode = decode
        self._on_bad = on_bad
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        _open(self._socket, address, secret, listen=True)

    @property
    def address(self) -> str:
        """Where it listens, with the port chosen."""
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def receive(self) -> list[T]:
        batch: list[bytes] = []
        try:
            while True:
                batch.append(bytes(self._socket.recv(zmq.DONTWAIT)))
        except zmq.Again:
            return decode_all(batch, self._decode, self._on_bad)

    def ready(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def arm(self) -> bool:
        return not self.ready()  # looking at EVENTS is what re-arms the edge-triggered descriptor

    def disarm(self) -> None:
        """Nothing to silence: ZeroMQ keeps its descriptor itself."""

    def fileno(self) -> int:
        return int(self._socket.getsockopt(zmq.FD))

    def close(self) -> None:
        self._socket.close(linger=0)


def _open(socket: "zmq.Socket[bytes]", address: str, secret: bytes | None, *, listen: bool) -> None:
    try:
        _check(address, secret)
        if secret is not None:
            _encrypt(socket, secret, listen)
        if listen:
            socket.bind(address)
        else:
            socket.connect(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ConfigError(f"cannot {'listen on' if listen else 'connect to'} {address}: {error}") from None
    except BaseException:
        socket.close(linger=0)
        raise


def _check(address: str, secret: bytes | None) -> None:
    parts = urlsplit(address)
    if parts.scheme != "tcp" or not parts.hostname:
        raise ConfigError(f"an address has the form tcp://HOST:PORT, got {address!r}")
    if secret is None and not _is_loopback(parts.hostname):
        raise ConfigError(f"{address} can be reached by other hosts: a shared secret is required")
    if secret is not None and len(secret) < SHORTEST_SECRET:
        raise ConfigError(f"a shared secret has at least {SHORTEST_SECRET} bytes, got {len(secret)}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _encrypt(socket: "zmq.Socket[bytes]", secret: bytes, listen: bool) -> None:
    if not zmq.has("curve"):
        raise ConfigError("this build of ZeroMQ has no CURVE encryption: sockets across hosts need it")
    key = z85.encode(hashlib.blake2b(secret, digest_size=32, person=b"lightllm-curve").digest())
    if listen:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, key)
        return
    public, private = zmq.curve_keypair()
    socket.setsockopt(zmq.CURVE_SERVERKEY, zmq.curve_public(key))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, private)
