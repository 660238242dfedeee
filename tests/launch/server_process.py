"""A server of fake workers as a test sees it: a process, its log, its children, its port."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import lightllm

HERE = Path(__file__).parent
ROOT = Path(lightllm.__file__).parents[1]
PATIENCE = 15.0
MARK = "LIGHTLLM_TEST_MARK"


class ServerProcess:
    """Starts `actors.host` with these options; on leaving, nothing of it may be left."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.mark = uuid.uuid4().hex
        self.log_path = directory / f"{self.mark}.log"
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", MARK: self.mark}
        with self.log_path.open("wb") as log:
            command = [sys.executable, str(HERE / "actors.py"), json.dumps(options)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if error is not None:
            print(self.log)
        else:
            until(lambda: not self.processes(), "a process outlived its supervisor", 2.0)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def port(self) -> int:
        return int(re.findall(r"starting at http://127.0.0.1:(\d+)", self.log)[0])

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the log has `text` that often."""
        until(lambda: self.log.count(text) >= times, f"the log has no {text!r}")

    def wait_ready(self) -> ServerProcess:
        self.wait_for(" ready at ")
        return self

    def pid(self, name: str) -> int:
        """The process that runs a worker, the latest if it was restarted."""
        return int(re.findall(rf"the {name} is process (\d+)", self.log)[-1])

    def kill(self, name: str, number: int = signal.SIGKILL) -> float:
        """Signal a worker, waiting for its restart if it is due; the time of that."""
        until(
            lambda: self.log.count(f"the {name} is process") > self.log.count(f"the {name} was killed"), "not started"
        )
        os.kill(self.pid(name), number)
        return time.monotonic()

    def processes(self) -> list[int]:
        """Every process that descends from the supervisor, however it was orphaned; zombies too."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def stream(self, line: str) -> Iterator[str]:
        """The lines of an answer as they come; nothing is sent before the first is asked for."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(line.encode() + b"\n")
            with connection.makefile() as lines:
                for answer in lines:
                    yield answer.rstrip("\n")

    def ask(self, line: str) -> list[str]:
        """The lines of an answer."""
        return list(self.stream(line))

    def states(self) -> dict[str, list[Any]]:
        """What a frontend knows: worker -> [up, generation]."""
        states: dict[str, list[Any]] = json.loads(self.ask("status")[0])
        return states

    def all_up(self) -> bool:
        try:
            return [up for up, _ in self.states().values()] == [True, True]
        except (OSError, IndexError):
            return False

    def wait_all_up(self) -> None:
        until(self.all_up, "not all workers came up again")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the supervisor and wait for its end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def until(condition: Callable[[], bool], failure: str, seconds: float = PATIENCE) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.01)
