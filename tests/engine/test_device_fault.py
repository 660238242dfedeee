"""A fault of the device ends the engine's process: its requests fail with an error, and it is started again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from lightllm.config.locate import find_model

HERE = Path(__file__).parent
SECONDS = 120.0
"""How long anything may take before the test gives up."""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_fault_fails_its_requests_and_the_engine_comes_back(device: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = HERE.parent.parent
    path = [str(root), str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, str(HERE / "faulty_engine.py"), str(find_model(None)), device]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        url = wait_for_url(server, log)
        assert complete(url, [5] * 10).status_code == 200
        body = {"prompt": [5] * 8, "max_tokens": 1500, "ignore_eos": True, "stream": True, "model": "demo"}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=SECONDS) as running:
            lines = running.iter_lines()
            assert next(lines).startswith("data: ")
            failed = complete(url, list(range(5, 95)))
            assert failed.status_code == 503 and failed.json()["error"]["code"] == "worker_died"
            last = [line for line in lines if "error" in line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "worker_died"
        give_up = time.monotonic() + SECONDS
        while complete(url, [5] * 10).status_code != 200:
            assert time.monotonic() < give_up, f"the engine did not come back:\n{log.read_text()}"
            time.sleep(0.1)
    finally:
        server.terminate()
        assert server.wait(SECONDS) == 0, log.read_text()


def complete(url: str, prompt: list[int]) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 3, "ignore_eos": True, "model": "demo"}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=SECONDS)


def wait_for_url(server: subprocess.Popen[bytes], log: Path) -> str:
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up and server.poll() is None:
        if found := re.search(r"ready at (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not become ready:\n{log.read_text()}")
