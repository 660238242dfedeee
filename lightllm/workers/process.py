"""The life of a worker process: what it inherits, how it reports, how it ends. `python -m lightllm.workers.process`.

The supervisor starts it with a `Bootstrap` on standard input. The worker's function, found by its dotted name, gets a
`Worker` and returns when it is told to leave. What that function does is not known here.

    standard input   the Bootstrap, as JSON
    lifeline         readable once the supervisor is gone, however it ended: then the worker ends at once
    rings, boards    inherited descriptors; closed by the kernel, whatever happens
    SIGINT, SIGTERM  ignored: the supervisor drains its workers by messages, and kills those that do not listen
    SIGUSR1          writes the stack of every thread to stderr
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import msgspec

from lightllm import logs
from lightllm.config.settings import Settings
from lightllm.errors import LightLLMError
from lightllm.ipc import Ring, RingHandle, RingReader, RingReceiver, RingSender, RingWriter
from lightllm.ipc.merged import MergedReceiver
from lightllm.metrics import Board, BoardHandle
from lightllm.metrics.names import for_tenants
from lightllm.protocol.codec import Codec
from lightllm.protocol.messages import Ready, StartFailed, SupervisorInbox

SUPERVISOR = "supervisor"
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Bootstrap(msgspec.Struct, frozen=True):
    """Everything a worker needs to begin. Rings are named by the worker at their other end, boards by their writer."""

    name: str
    role: str
    index: int
    generation: int
    entry: str
    settings: Settings
    inbound: dict[str, RingHandle]
    outbound: dict[str, RingHandle]
    boards: dict[str, BoardHandle]
    lifeline: int
    supervisor_pid: int
    started: int
    """Start of the server, seconds since the epoch."""
    listening_socket: int | None = None
    log_level: str = "info"


class Worker:
    """What a worker's function works with. `generation` counts the starts of this worker from 0."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self.name = bootstrap.name
        self.index = bootstrap.index
        self.generation = bootstrap.generation
        self.settings = bootstrap.settings
        self.started = bootstrap.started
        metrics = for_tenants(bootstrap.settings.scheduler.tenant_weights)
        self.boards = {name: Board.attach(handle, metrics) for name, handle in bootstrap.boards.items()}
        self.listening_socket = _socket(bootstrap.listening_socket)
        self._outbound = {name: Ring.attach(handle) for name, handle in bootstrap.outbound.items()}
        self._readers = {name: RingReader(Ring.attach(handle)) for name, handle in bootstrap.inbound.items()}
        codec: Codec[SupervisorInbox] = Codec(SupervisorInbox)
        self._report = RingSender(RingWriter(self._outbound[SUPERVISOR]), codec.encode)
        self.is_ready = False

    @property
    def board(self) -> Board:
        """The metric board that this worker writes."""
        return self.boards[self.name]

    def sender(self, peer: str, union: Any) -> RingSender[Any]:
        """Channel to the worker named `peer`, for messages of the type `union`."""
        return RingSender(RingWriter(self._outbound[peer]), Codec[Any](union).encode)

    def receiver(self, peer: str, union: Any) -> RingReceiver[Any]:
        """Channel from the worker named `peer`, or from the supervisor."""
        return RingReceiver(self._readers[peer], Codec[Any](union).decode)

    def receivers(self, union: Any) -> list[RingReceiver[Any]]:
        """All channels to this worker; the supervisor's is last, so that its word comes after what it is about."""
        peers = sorted(self._readers, key=lambda peer: peer == SUPERVISOR)
        return [self.receiver(peer, union) for peer in peers]

    def inbox(self, union: Any) -> MergedReceiver[Any]:
        """All channels to this worker as one."""
        return MergedReceiver(self.receivers(union))

    def ready(self, facts: dict[str, Any] | None = None) -> None:
        """Tell the supervisor that this worker can serve. A restarted one drops what was meant for its predecessor."""
        if self.generation > 0:
            for peer, reader in self._readers.items():
                if peer != SUPERVISOR:
                    reader.skip_all()
        self.is_ready = True
        self._report.send(Ready(self.name, facts or {}))
        logger.debug("ready")

    def fail(self, code: str, message: str) -> None:
        """Tell the supervisor, if this worker was not ready yet, why it will never be."""
        if not self.is_ready:
            self._report.send(StartFailed(self.name, code, message))


def main() -> None:
    """The process: read the bootstrap, run the worker's function, end with 0 if it returned."""
    bootstrap = _read_bootstrap()
    _follow_supervisor(bootstrap)
    logs.configure(bootstrap.log_level, bootstrap.name, logs.STDERR)
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    code = _run(Worker(bootstrap), bootstrap.entry)
    logging.shutdown()
    os._exit(code)  # threads that do not end must not keep a worker alive that has nothing left to do


def _read_bootstrap() -> Bootstrap:
    """What the supervisor left on standard input, which nobody else shall read: it may hold API keys."""
    with open(0, "rb", closefd=False) as stdin:
        bootstrap = msgspec.json.decode(stdin.read(), type=Bootstrap)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return bootstrap


def _run(worker: Worker, entry: str) -> int:
    try:
        find_entry(entry)(worker)
    except LightLLMError as error:
        logger.debug("the %s failed", worker.name, exc_info=error)
        if worker.is_ready:
            logger.error("%s", error.message)
        worker.fail(error.code, error.message)
    except (Exception, SystemExit) as error:
        logger.exception("the %s failed", worker.name)
        worker.fail(LightLLMError.code, f"{type(error).__name__}: {error}")
    else:
        return 0
    return 1


def find_entry(name: str) -> Callable[[Worker], None]:
    """The function that "package.module:function" names. Raises ImportError, AttributeError or ValueError."""
    module, _, function = name.partition(":")
    entry: Callable[[Worker], None] = getattr(import_module(module), function)
    return entry


def _follow_supervisor(bootstrap: Bootstrap) -> None:
    """Obey nobody but the supervisor, and end when it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_inheritable(bootstrap.lifeline, False)
    if os.getppid() != bootstrap.supervisor_pid:
        _end_session()
    threading.Thread(target=_watch, args=(bootstrap.lifeline,), name="lifeline", daemon=True).start()


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns when the last writing end is closed
    _end_session()


def _end_session() -> None:
    """End this process and, if it leads a session, everything it started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _socket(fd: int | None) -> socket.socket | None:
    if fd is None:
        return None
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


if __name__ == "__main__":
    from lightllm.workers import process

    process.main()
