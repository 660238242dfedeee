"""One worker as the supervisor sees it: its process, its two channels, its place in the cycle of starts.

    absent ──start──▶ starting ──Ready──▶ ready
       ▲                 │                  │
       └──── bury ◀──────┴──── it ended ◀───┘

Knows how a process is started, what it inherits and how it ended. What its end means for others is not known here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import msgspec

import lightllm
from lightllm.config.settings import Settings
from lightllm.ipc import Ring
from lightllm.launch.backoff import Backoff
from lightllm.launch.topology import WorkerSpec
from lightllm.launch.wiring import Wiring
from lightllm.protocol.messages import Ready, StartFailed
from lightllm.workers.process import Bootstrap

COMMAND = (sys.executable, "-P", "-m", "lightllm.workers.process")


class State(StrEnum):
    """Where a worker is in its cycle."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"


class Child:
    """A worker that is started, watched, buried and started again. Times are seconds on the monotonic clock."""

    def __init__(self, spec: WorkerSpec, wiring: Wiring) -> None:
        self.spec = spec
        self.state = State.ABSENT
        self.generation = -1
        self.served_before = False
        """It has been ready at least once."""
        self.since = 0.0
        """When it entered its state."""
        self.restart_at: float | None = None
        self.facts: dict[str, Any] = {}
        self.last_words: StartFailed | None = None
        self.killed = False
        """We ended it ourselves."""
        self.trouble = "is starting"
        """Why it is not up, as a clause that follows its name."""
        self.backoff = Backoff()
        self.sender = wiring.sender_to(spec.name)
        self.receiver = wiring.receiver_from(spec.name)
        self._wiring = wiring
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """It was started and not buried yet."""
        return self._process is not None

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, settings: Settings, listening_fd: int | None, started: int, log_level: str, now: float) -> None:
        """Start the process; it inherits its ends of the wiring and nothing else."""
        self.generation += 1
        self._wiring.drop_unread(self.spec.name)
        bootstrap = self._bootstrap(settings, listening_fd if self.spec.listens else None, started, log_level)
        with _anonymous_file(msgspec.json.encode(bootstrap)) as stdin:
            self._process = subprocess.Popen(
                [*COMMAND, self.spec.name],
                stdin=stdin,
                stdout=2,
                pass_fds=self._inherited(bootstrap),
                start_new_session=True,
                env=_environment(),
            )
        self.restart_at, self.last_words, self.killed = None, None, False
        self._enter(State.STARTING, now)

    def hear(self, now: float) -> bool:
        """Read what it reports; True if it became ready."""
        was_ready = self.is_ready
        for message in self.receiver.receive():
            match message:
                case Ready() if self.state is State.STARTING:
                    self.facts, self.served_before = message.facts, True
                    self._enter(State.READY, now)
                case StartFailed():
                    self.last_words = message
        return self.is_ready and not was_ready

    def ended(self) -> int | None:
        """The exit status if it ended, negative for a signal; it is a zombie no more."""
        return None if self._process is None else self._process.poll()

    def bury(self, now: float) -> float:
        """Forget the ended process, its gauges and what it left running; seconds that it had been ready."""
        assert self._process is not None
        _kill_group(self._process.pid)
        self._process = None
        self._wiring.boards[self.spec.name].reset_gauges()
        healthy = now - self.since if self.is_ready else 0.0
        self._enter(State.ABSENT, now)
        return healthy

    def kill(self) -> None:
        """End it and what it started, now. It still has to be buried."""
        if self._process is not None and self._process.returncode is None:
            self.killed = True
            _kill_group(self._process.pid)

    def reap(self) -> None:
        """Kill it and wait for its end."""
        if self._process is not None:
            self.kill()
            self._process.wait()
            self._process = None

    def send_signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def why_it_ended(self, status: int) -> str:
        """A clause that follows its name: its own words if it left any, else how its process ended."""
        if self.last_words is not None:
            return f"could not start: {self.last_words.message}"
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
            return f"was killed by signal {-status} ({name})"
        return f"ended with exit code {status}"

    def _enter(self, state: State, now: float) -> None:
        self.state, self.since = state, now

    def _bootstrap(self, settings: Settings, listening_fd: int | None, started: int, log_level: str) -> Bootstrap:
        name, wiring = self.spec.name, self._wiring
        return Bootstrap(
            name=name,
            role=self.spec.role,
            index=self.spec.index,
            generation=self.generation,
            entry=self.spec.entry,
            settings=settings,
            inbound={peer: ring.handle() for peer, ring in wiring.inbound(name).items()},
            outbound={peer: ring.handle() for peer, ring in wiring.outbound(name).items()},
            boards={writer: board.handle() for writer, board in wiring.boards_of(self.spec).items()},
            lifeline=wiring.lifeline,
            supervisor_pid=os.getpid(),
            started=started,
            listening_socket=listening_fd,
            log_level=log_level,
        )

    def _inherited(self, bootstrap: Bootstrap) -> list[int]:
        name, wiring = self.spec.name, self._wiring
        rings: Iterable[Ring] = (*wiring.inbound(name).values(), *wiring.outbound(name).values())
        fds = [bootstrap.lifeline, *(fd for ring in rings for fd in ring.fds)]
        fds += [fd for board in wiring.boards_of(self.spec).values() for fd in board.fds]
        if bootstrap.listening_socket is not None:
            fds.append(bootstrap.listening_socket)
        return fds


def _anonymous_file(content: bytes) -> IO[bytes]:
    """A file without a name that begins with `content`, ready to be read."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("lightllm-bootstrap"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(content)
    file.seek(0)
    return file


def _environment() -> dict[str, str]:
    """Ours, and the way to this very package if it is not an installed one."""
    root = str(Path(lightllm.__file__).parent.parent)
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    known = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says so with the latter
        os.killpg(pid, signal.SIGKILL)
