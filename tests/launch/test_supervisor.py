"""The process tree with real processes: start, death, restart, drain, and what is left after kill -9."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from server_process import ROOT, ServerProcess, until

from lightllm.launch.supervisor import LEAVE_SECONDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
SEEN_WITHIN = 1.0


def test_it_serves_and_drains_with_requests_running(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        server.wait_ready()
        assert server.ask("generate 3") == ["token", "token", "token", "done"]
        answer = server.stream("generate 100")
        assert next(answer) == "token"
        server.process.terminate()
        server.wait_for("draining")
        assert server.ask("generate 3") == ["refused: draining"]
        assert list(answer)[-2:] == ["token", "done"]
        assert server.process.wait(5) == 0
        assert not server.processes()
        assert server.log.rstrip().endswith("stopped")


def test_a_drain_ends_at_its_deadline(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, server={"drain_seconds": 0.3}) as server:
        answer = server.wait_ready().stream("generate 100000")
        next(answer)
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 2
        assert list(answer)[-1] == "failed: draining"


def test_a_death_during_a_drain_is_told(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        answer = server.wait_ready().stream("generate 100000")
        next(answer)
        server.process.terminate()
        server.wait_for("draining")
        os.kill(server.pid("engine"), signal.SIGKILL)
        assert list(answer)[-1] == "failed: the engine was killed by signal 9 (SIGKILL)"
        assert server.process.wait(5) == 0
        assert server.log.count("the engine was killed by signal 9 (SIGKILL)") == 1


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        answer = server.wait_ready().stream("generate 100000")
        next(answer)
        for _ in range(2):  # as when a terminal and a wrapper script both pass it on
            server.process.send_signal(signal.SIGINT)
        server.wait_for("draining")
        assert next(answer) == "token"
        time.sleep(0.4)
        begin = time.monotonic()
        assert server.stop() == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 1


def test_a_worker_that_will_not_leave_is_killed(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, entries={"engine_entry": "actors:deaf_engine"}) as server:
        server.wait_ready()
        begin = time.monotonic()
        assert server.stop() == 0
        assert LEAVE_SECONDS - 0.1 < time.monotonic() - begin < LEAVE_SECONDS + 2
        assert "killing engine" in server.log


def test_frontends_answer_while_the_engine_loads_and_a_signal_stops_that(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, entries={"engine_entry": "actors:hanging_engine"}) as server:
        server.wait_for("the frontend-0 is ready")
        server.wait_for("the detokenizer is ready")
        assert server.ask("generate 1") == ["refused: not ready"]
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize(
    ("entry", "server", "words"),
    [
        ("refusing_engine", {}, "the engine could not start: the flag --frobnicate needs a number, got 'many'"),
        ("broken_engine", {}, "could not start: RuntimeError: the heat death of the universe"),
        ("hanging_engine", {"start_seconds": 1.5}, "not ready after 1.5 s; allow more with --start-seconds"),
    ],
)
def test_a_failed_first_start_ends_the_server(tmp_path: Path, entry: str, server: dict[str, float], words: str) -> None:
    with ServerProcess(tmp_path, entries={"engine_entry": f"actors:{entry}"}, server=server) as process:
        assert process.process.wait(10) == 1
        assert words in process.log.splitlines()[-1]
        assert not process.processes()


def test_a_killed_worker_fails_its_requests_at_once_and_comes_back(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, entries={"engine_entry": "actors:engine_with_child"}, first_seconds=0.2) as server:
        server.wait_ready()
        for name in ("engine", "detokenizer", "frontend-0"):
            answer = server.stream("generate 100000")
            next(answer)
            killed = server.kill(name)
            rest = list(answer)
            assert time.monotonic() - killed < SEEN_WITHIN
            if name == "frontend-0":
                assert set(rest) <= {"token"}, "the connection went with its process"
            else:
                assert rest[-1] == f"failed: the {name} was killed by signal 9 (SIGKILL)"
                assert server.ask("generate 1") == ["refused: not ready"]
            server.wait_for(f"the {name} is ready again")
            server.wait_all_up()
            assert server.ask("generate 2") == ["token", "token", "done"]
        assert server.states() == {"engine": [True, 1], "detokenizer": [True, 1]}
        assert len(server.processes()) == 5, "supervisor, three workers and the child of the engine"
        assert server.stop() == 0


def test_every_request_ends_whoever_is_killed_whenever(tmp_path: Path) -> None:
    chance = random.Random(7)
    ends: list[str] = []
    over = threading.Event()

    def client(server: ServerProcess) -> None:
        while not over.is_set():
            try:
                lines = server.ask("generate 20")
            except OSError:
                lines = []
            ends.append(lines[-1] if lines else "disconnected")
            time.sleep(0.02)

    with ServerProcess(tmp_path, server={"frontends": 2}, first_seconds=0.02) as server:
        server.wait_ready()
        clients = [threading.Thread(target=client, args=(server,)) for _ in range(3)]
        for thread in clients:
            thread.start()
        for name in chance.sample(["engine", "detokenizer", "frontend-0", "frontend-1", "engine"], 5):
            time.sleep(chance.uniform(0.05, 0.5))
            server.kill(name)
        until(lambda: server.log.count("is ready again") >= 4, "a worker did not come back")
        server.wait_all_up()
        until(lambda: ends[-3:].count("done") == 3, "requests do not succeed again")
        over.set()
        for thread in clients:
            thread.join(5)
            assert not thread.is_alive(), "a request never ended"
        assert server.stop() == 0


def test_it_gives_up_on_a_worker_that_keeps_failing(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, entries={"engine_entry": "actors:mortal_engine"}, first_seconds=0.01, most_failures=3
    ) as server:
        server.wait_ready().kill("engine")
        assert server.process.wait(15) == 1
        last = server.log.splitlines()[-1]
        assert "the server gives up: the engine could not start: only one life, failure 3 in a row" in last


@pytest.mark.parametrize("stopped", [(), ("engine", "detokenizer")])
def test_nothing_outlives_a_killed_supervisor(tmp_path: Path, stopped: tuple[str, ...]) -> None:
    shared = set(os.listdir("/dev/shm"))
    with ServerProcess(tmp_path, entries={"engine_entry": "actors:engine_with_child"}) as server:
        answer = server.wait_ready().stream("generate 100000")
        next(answer)
        for name in stopped:  # a stopped process cannot run any code of its own
            os.kill(server.pid(name), signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        workers = [server.pid(name) for name in ("engine", "detokenizer", "frontend-0")]
        until(lambda: not any(map(runs, workers)), "a worker outlived its supervisor", SEEN_WITHIN)
        assert set(os.listdir("/dev/shm")) <= shared
        for pid in server.processes():  # what a worker had started itself
            os.kill(pid, signal.SIGKILL)


def test_a_stalled_engine_shows_its_stacks_and_fails_its_requests(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, longest_step_seconds=0.4) as server:
        server.wait_ready()
        lines = server.ask("generate 4321")
        assert lines[-1] == "failed: the engine has work but took no step for 0.4 s"
        assert "takes steps again" not in server.log
        server.wait_for('actors.py", line')
        server.wait_for("the engine takes steps again")
        server.wait_all_up()
        assert server.ask("generate 1") == ["token", "done"]
        assert "was killed" not in server.log
        assert server.stop() == 0


def test_sigusr1_shows_health_and_stacks_and_sighup_drains(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        server.wait_ready()
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for("health: ")
        server.wait_for("Thread 0x", times=3)
        assert server.ask("generate 1") == ["token", "done"]
        assert server.stop(signal.SIGHUP) == 0


def test_the_supervisor_never_loads_torch() -> None:
    code = "import sys, lightllm.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie (of an init that does not wait)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
