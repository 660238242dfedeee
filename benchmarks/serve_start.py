"""How long `lightllm serve` takes until a token can be generated, and what it costs when idle.

    python benchmarks/serve_start.py [MODEL] [--runs 3] [--json FILE]

Ready means that GET /ready answers 200, which needs a generated token. Idle is processor time of all its processes
over ten seconds without a request, as a share of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PORT = 8471
IDLE_SECONDS = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


def run(model: list[str]) -> tuple[float, float]:
    """Seconds to ready, and the idle share of a core."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "lightllm.cli.main", "serve", *model, "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not is_ready():
            if server.poll() is not None:
                sys.exit(f"the server ended with exit code {server.returncode}")
            time.sleep(0.02)
        ready = time.perf_counter() - begun
        time.sleep(2.0)
        before = processor_seconds(server.pid)
        time.sleep(IDLE_SECONDS)
        return ready, (processor_seconds(server.pid) - before) / IDLE_SECONDS
    finally:
        server.terminate()
        server.wait()


def is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def processor_seconds(supervisor: int) -> float:
    """User and system time of the supervisor and its workers so far."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    total = 0
    for pid in [str(supervisor), *children]:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    runs = [run(arguments.model) for _ in range(arguments.runs)]
    result = {
        "ready_seconds": [round(ready, 3) for ready, _ in runs],
        "idle_share_of_a_core": [round(idle, 4) for _, idle in runs],
        "cores": os.cpu_count(),
    }
    print(f"ready after {statistics.median(r for r, _ in runs):.2f} s (median), idle {runs[-1][1]:.2%} of a core")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
