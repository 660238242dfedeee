"""All workers of a server: starting them, noticing their end, telling each what became of the others.

    engine, detokenizer   up or down  ──WorkerState──▶ every frontend: requests fail at once, readiness turns red
    frontend              down        ──AbortFrontend─▶ engine, detokenizer: its requests are given up

Knows nothing of signals and of when the server should end; time is an argument.
"""

from __future__ import annotations

import errno
import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

from lightllm.config.settings import Settings
from lightllm.errors import Backpressure, ConfigError, NotReady
from lightllm.ipc import RingReceiver, RingSender
from lightllm.launch.child import Child, State
from lightllm.launch.stall import LONGEST_STEP_SECONDS, StallWatch
from lightllm.launch.topology import Role, Topology
from lightllm.launch.wiring import Wiring
from lightllm.metrics import MetricSet, names
from lightllm.protocol.messages import AbortFrontend, Die, Drain, StartFailed, SupervisorInbox, WorkerState
from lightllm.workers.process import SUPERVISOR

logger = logging.getLogger(__name__)


class Crew:
    """The workers of a topology; `listening_fd` is the socket that its frontends share.

    `failure` says why the server cannot go on, once it cannot. With `restarting` off, who ends stays away. Raises
    ConfigError when the machine has no room for the channels between them.
    """

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        listening_fd: int,
        *,
        log_level: str = "info",
        longest_step_seconds: float = LONGEST_STEP_SECONDS,
    ) -> None:
        self.failure: str | None = None
        self.restarting = True
        self._settings = settings
        self._listening_fd = listening_fd
        self._log_level = log_level
        self._started = int(time.time())
        try:
            self._wiring = Wiring(topology, names.for_tenants(settings.scheduler.tenant_weights))
        except OSError as error:
            many = len(topology.workers)
            hint = "; raise the limit of open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
            raise ConfigError(f"no channels for {many} worker processes: {error.strerror}{hint}") from error
        self._children = {spec.name: Child(spec, self._wiring) for spec in topology.workers}
        self._metrics = MetricSet(self._wiring.boards[SUPERVISOR])
        self._metrics.gauge(names.PROCESS_START_TIME).set(self._started)
        self._watches = {
            spec.name: StallWatch(self._wiring.boards[spec.name], longest_step_seconds)
            for spec in topology.of_role("engine")
        }

    @property
    def all_ready(self) -> bool:
        return all(child.is_ready for child in self._children.values())

    @property
    def receivers(self) -> list[RingReceiver[SupervisorInbox]]:
        """What the workers report with; sleep on them, then call `hear`."""
        return [child.receiver for child in self._children.values()]

    @property
    def senders(self) -> list[RingSender[object]]:
        """What the workers are told with."""
        return [child.sender for child in self._children.values()]

    def alive(self, role: Role | None = None) -> list[Child]:
        """The workers, of one role or all, whose process runs."""
        return [child for child in self._children.values() if child.alive and role in (None, child.spec.role)]

    def health(self) -> dict[str, Any]:
        """Of each worker its state, generation, process id, and whether it has work but takes no step."""
        return {
            name: {
                "state": child.state.value,
                "generation": child.generation,
                "pid": child.pid,
                "stalled": name in self._watches and self._watches[name].reported,
            }
            for name, child in self._children.items()
        }

    # -- turns of the loop -------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start all, in parallel."""
        for child in self._children.values():
            self._start(child, now)

    def hear(self, now: float) -> None:
        """Read what the workers report and bury those that ended."""
        for child in self._children.values():
            status = child.ended()  # before listening: its last words are there if it ended
            if child.hear(now):
                self._came_up(child, now)
            if status is not None:
                self._went_down(child, status, now)

    def keep_deadlines(self, now: float) -> None:
        """Start again whom it is time for, give up on starts that take too long, look for a stalled engine."""
        for child in self._children.values():
            if child.state is State.STARTING and now >= child.since + self._settings.server.start_seconds:
                self._give_up_start(child)
            if child.restart_at is not None and now >= child.restart_at:
                self._metrics.counter(names.WORKER_RESTARTS, worker=child.spec.role).inc()
                self._start(child, now)
        for name, watch in self._watches.items():
            if self._children[name].is_ready:
                self._look_for_stall(self._children[name], watch, now)

    def deadlines(self) -> Iterator[float]:
        """The times at which `keep_deadlines` has something to do."""
        for child in self._children.values():
            if child.restart_at is not None:
                yield child.restart_at
            if child.state is State.STARTING:
                yield child.since + self._settings.server.start_seconds
        for watch in self._watches.values():
            yield time.monotonic() + watch.limit_seconds / 2

    # -- endings -----------------------------------------------------------------------------------------------

    def drain(self, deadline_s: float) -> None:
        """Frontends take nothing new and leave when their requests end; nobody is started any more."""
        self.restarting = False
        for child in self._children.values():
            child.restart_at = None
            if child.state is State.STARTING:
                child.kill()  # it serves nobody yet
            elif child.is_ready and child.spec.role == "frontend":
                self._send(child, Drain(deadline_s))

    def dismiss(self) -> None:
        """Everyone leaves; a frontend that is still there had its time."""
        for child in self.alive():
            if child.spec.role == "frontend" or not child.is_ready:
                logger.warning("the %s did not leave in time and is killed", child.spec.name)
                child.kill()
            else:
                self._send(child, Die())

    def kill(self) -> None:
        """End everyone at once."""
        for child in self.alive():
            child.kill()

    def close(self) -> None:
        """End everyone, wait for that, and give the shared memory back."""
        self.kill()
        for child in self.alive():
            child.reap()
        self._wiring.close()

    def dump_stacks(self) -> None:
        """Every worker writes the stacks of its threads to stderr."""
        for child in self.alive():
            if child.is_ready:  # before that it may not have its handler yet
                child.send_signal(signal.SIGUSR1)

    # -- workers come and go -----------------------------------------------------------------------------------

    def _start(self, child: Child, now: float) -> None:
        try:
            child.start(self._settings, self._listening_fd, self._started, self._log_level, now)
        except OSError as error:
            self._failed(child, f"cannot be started: {error}", 0.0, now)
            return
        logger.debug("the %s is process %d", child.spec.name, child.pid)
        if child.spec.role == "frontend":
            for other in self._children.values():
                if other.spec.role != "frontend" and other.served_before:
                    self._send(child, _state_of(other))

    def _came_up(self, child: Child, now: float) -> None:
        logger.info("the %s is ready%s", child.spec.name, " again" if child.generation else "")
        if child.spec.name in self._watches:
            self._watches[child.spec.name].reset(now)
        self._tell_frontends(child)

    def _went_down(self, child: Child, status: int, now: float) -> None:
        child.trouble = child.why_it_ended(status)
        healthy = child.bury(now)
        if child.spec.role == "frontend":
            self._tell_others_of_frontend(child)
        else:
            self._tell_frontends(child)
        hint = (
            " (did the machine run out of memory?)"
            if status == -signal.SIGKILL and not (child.last_words or child.killed)
            else ""
        )
        if self.restarting:
            self._failed(child, child.trouble + hint, healthy, now)
        elif status and not child.killed:
            logger.error("the %s %s", child.spec.name, child.trouble + hint)
        else:
            logger.debug("the %s left", child.spec.name)

    def _failed(self, child: Child, reason: str, healthy: float, now: float) -> None:
        """Plan the next start, unless there is no use."""
        pause = child.backoff.failed(healthy)
        if not child.served_before:
            self.failure = f"the {child.spec.name} {reason}" + ("" if child.last_words else " before it was ready")
        elif child.backoff.exhausted:
            self.failure = (
                f"the server gives up: the {child.spec.name} {reason}, failure {child.backoff.failures} in a row"
            )
        else:
            logger.error("the %s %s; it is started again in %g s", child.spec.name, reason, pause)
            child.restart_at = now + pause

    def _give_up_start(self, child: Child) -> None:
        message = f"it was not ready after {self._settings.server.start_seconds:g} s; allow more with --start-seconds"
        child.last_words = child.last_words or StartFailed(child.spec.name, NotReady.code, message)
        child.kill()

    def _look_for_stall(self, child: Child, watch: StallWatch, now: float) -> None:
        stalled = watch.stalled(self._wiring.has_unread(child.spec.name), now)
        if stalled == watch.reported:
            return
        watch.reported = stalled
        if stalled:
            child.trouble = f"has work but took no step for {watch.limit_seconds:g} s"
            logger.error("the %s %s; its stacks follow", child.spec.name, child.trouble)
            child.send_signal(signal.SIGUSR1)
            for frontend in self.alive("frontend"):  # their requests fail now: none may run when it goes on
                self._send(child, AbortFrontend(frontend.spec.index, frontend.generation))
        else:
            logger.warning("the %s takes steps again", child.spec.name)
        self._tell_frontends(child, up=not stalled)

    # -- news --------------------------------------------------------------------------------------------------

    def _tell_frontends(self, child: Child, up: bool | None = None) -> None:
        if child.spec.role != "frontend":
            for frontend in self.alive("frontend"):
                self._send(frontend, _state_of(child, up))

    def _tell_others_of_frontend(self, child: Child) -> None:
        for other in self.alive():
            if other.spec.role in ("engine", "detokenizer"):
                self._send(other, AbortFrontend(child.spec.index, child.generation))

    def _send(self, child: Child, message: object) -> None:
        try:
            child.sender.send(message)
        except Backpressure:
            logger.error("the %s does not read what it is told and is killed", child.spec.name)
            child.kill()


def _state_of(child: Child, up: bool | None = None) -> WorkerState:
    """The news of a worker, as frontends get it."""
    up = child.is_ready if up is None else up
    message = "" if up else child.trouble
    return WorkerState(child.spec.name, up, child.generation, message, child.facts if up else {})
