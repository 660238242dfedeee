"""The process that the person started: it keeps the workers going, and ends the server when it is told to.

    starting ──all ready──▶ serving ──SIGTERM──▶ draining ──frontends left──▶ stopping ──all left──▶ exit 0
       │ a first start fails   │ a worker fails again and again
       ▼                       ▼
     exit 1                  exit 1              a second signal at any time after the first: exit 128 + its number

It serves no request and never loads torch. If it is killed, every worker ends with it (`lightllm.workers.process`).
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from enum import StrEnum
from typing import Any

from lightllm.config.settings import Settings
from lightllm.ipc import Poller
from lightllm.ipc.waiting import Armable
from lightllm.launch.crew import Crew
from lightllm.launch.listening import url_of
from lightllm.launch.signals import Signals
from lightllm.launch.stall import LONGEST_STEP_SECONDS
from lightllm.launch.topology import Topology

FAILED = 1
"""Exit code after a failure."""
DRAIN_GRACE_SECONDS = 5.0
"""After the deadline of a drain, how long frontends may take to end their requests with an error and leave."""
LEAVE_SECONDS = 5.0
"""How long the other workers may take to leave before they are killed: an engine may be compiling, or its driver taking
back a hundred gigabytes."""
SAME_SIGNAL_SECONDS = 0.3
"""A second signal that soon is the first once more: terminals and wrapper scripts may both pass on a Ctrl-C."""
LONGEST_SLEEP = 5.0

logger = logging.getLogger(__name__)


class Phase(StrEnum):
    """What the server as a whole is doing."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


class Supervisor:
    """One server; `run` blocks until it has ended. It owns `listener`. For the main thread, which gets the signals."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        listener: socket.socket,
        *,
        log_level: str = "info",
        longest_step_seconds: float = LONGEST_STEP_SECONDS,
    ) -> None:
        self.phase = Phase.STARTING
        self._drain_seconds = settings.server.drain_seconds
        self._listener = listener
        self._url = url_of(listener)
        self._crew = Crew(
            settings, topology, listener.fileno(), log_level=log_level, longest_step_seconds=longest_step_seconds
        )
        self._begun = time.monotonic()
        self._drained_at = 0.0
        self._stop_by: float | None = None
        self._exit_code: int | None = None

    def run(self) -> int:
        """Start, serve, stop. The exit code: 0 after a drain, 1 after a failure, 128 + n after a second signal n."""
        signals = Signals()
        try:
            logger.info("starting at %s", self._url)
            self._crew.start(time.monotonic())
            poller: Poller[Armable] = Poller([signals, *self._crew.receivers], self._crew.senders)
            while self._exit_code is None:
                poller.wait(self._time_left())
                now = time.monotonic()
                self._obey(signals.take(), now)
                self._crew.hear(now)
                self._crew.keep_deadlines(now)
                self._go_on(now)
        finally:
            self._listener.close()
            self._crew.close()
            signals.close()
        if self._exit_code == FAILED:
            logger.error("%s", self._crew.failure)  # the last word: no worker is left to say anything
        return self._exit_code

    def health(self) -> dict[str, Any]:
        """The phase, and of each worker its state, generation, process id and whether it is stalled."""
        return {"phase": self.phase.value, "workers": self._crew.health()}

    def _obey(self, signals: list[int], now: float) -> None:
        for number in signals:
            if number == signal.SIGUSR1:
                logger.info("health: %s", self.health())
                self._crew.dump_stacks()
            elif number == signal.SIGCHLD:
                pass  # it only woke us
            elif self.phase not in (Phase.DRAINING, Phase.STOPPING):
                self._drain(now)
            elif now > self._drained_at + SAME_SIGNAL_SECONDS:
                logger.warning("stopping at once, on a second signal")
                self._exit_code = 128 + number

    def _drain(self, now: float) -> None:
        logger.info("draining: running requests may finish within %g s", self._drain_seconds)
        self.phase = Phase.DRAINING
        self._drained_at = now
        self._stop_by = now + self._drain_seconds + DRAIN_GRACE_SECONDS
        self._listener.close()  # the frontends still hold it, and refuse what comes
        self._crew.drain(self._drain_seconds)

    def _go_on(self, now: float) -> None:
        """Enter the next phase, or end, if it is time."""
        late = self._stop_by is not None and now >= self._stop_by
        if self._crew.failure is not None and self._exit_code is None:
            self._exit_code = FAILED
        elif self.phase is Phase.STARTING and self._crew.all_ready:
            self.phase = Phase.SERVING
            logger.info("ready at %s after %.1f s", self._url, now - self._begun)
        elif self.phase is Phase.DRAINING and (late or not self._crew.alive("frontend")):
            self.phase = Phase.STOPPING
            self._stop_by = now + LEAVE_SECONDS
            self._crew.dismiss()
        elif self.phase is Phase.STOPPING and not self._crew.alive():
            logger.info("stopped")
            self._exit_code = 0
        elif self.phase is Phase.STOPPING and late:
            logger.warning("killing %s: no answer", ", ".join(child.spec.name for child in self._crew.alive()))
            self._crew.kill()
            self._stop_by = None

    def _time_left(self) -> float:
        """Seconds until there is something to do even if nothing happens."""
        own = [] if self._stop_by is None else [self._stop_by]
        soonest = min([*own, *self._crew.deadlines()], default=LONGEST_SLEEP + time.monotonic())
        return min(max(soonest - time.monotonic(), 0.0), LONGEST_SLEEP)
