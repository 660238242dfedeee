"""The listening socket, bound before anything else so that a taken port is known at once.

All frontends inherit the one socket. It outlives each of them: while a frontend restarts, connections wait in the
kernel instead of being refused.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import socket

from lightllm.errors import ConfigError

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port`, port 0 for any free one. Raises ConfigError saying what to do."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot listen on {host!r}: {reason}; give an address of this machine with --host") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(_explain(error, host, port), param="port") from None
    return listener


def allow_many_connections() -> None:
    """Raise this process's limit of open files, which its children inherit, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems name no limit and still have one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def url_of(listener: socket.socket) -> str:
    """Where clients on this machine reach it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop the program that has it, or choose another port with --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} on {host} needs privileges that this user has not; choose a port above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; choose another with --host, or 0.0.0.0 for all"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
