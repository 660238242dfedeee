"""From starting a process to the first token, with empty caches and with filled ones: of compiled kernels, and of the
bytecode that Python keeps of modules, which here is kept even where the environment forbids it.

    python benchmarks/startup.py benchmarks/models/llama3-8b [--device cpu] [--json FILE]

Dummy weights of the model's shape, made on the device. First the engine alone, whose process prints the time after each
phase; then, with a filled cache, `lightllm serve` twice, from its start until the first token of a streamed completion
arrives over HTTP: the first time Python compiles the modules that only a server imports. A bare config has no
tokenizer, so the prompt is token ids and the tokenizer that of the bundled demo model.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PORT = 8472
PROMPT = list(range(100, 228))
DEMO = Path(__file__).resolve().parents[1] / "lightllm" / "assets" / "demo"
CHILD = """
import json, sys, time
begun = time.time()
import gc
gc.disable()
from pathlib import Path
from lightllm.device.early import open_early
open_early(sys.argv[2])
from lightllm.bench.pipeline import TokenPipeline
from lightllm.bench.workloads import WorkloadShape, make_requests
from lightllm.config.settings import EngineSettings, ModelSettings, Settings
gc.freeze()
imported = time.time()
model, engine = ModelSettings(model=sys.argv[1], dummy=True), EngineSettings(device=sys.argv[2])
pipeline = TokenPipeline(Settings(model=model, engine=engine), Path(sys.argv[1]))
gc.enable()
built = time.time()
shape = WorkloadShape("first tokens", 1, (128, 128), (2, 2))
times = pipeline.run(make_requests(shape, pipeline.facts["vocab_size"], seed=1)).generated[0].times
print(json.dumps({"begun": begun, "imported": imported, "built": built, "tokens": [built + t for t in times]}))
"""


def start_engine(model: str, device: str, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each phase; `total` ends with the first token."""
    spawned = time.time()
    command = [sys.executable, "-c", CHILD, model, device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    at: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    first, second = at["tokens"]
    return {
        "interpreter": at["begun"] - spawned,
        "imports": at["imported"] - at["begun"],
        "engine": at["built"] - at["imported"],
        "first token": first - at["built"],
        "second token": second - first,
        "total": first - spawned,
    }


def start_server(model: str, device: str, environment: dict[str, str]) -> dict[str, float]:
    """Seconds from starting the command to the first streamed token."""
    command = [sys.executable, "-m", "lightllm.cli.main", "serve", model, "--dummy", "--device", device]
    command += ["--served-model-name", "dummy", "--tokenizer", str(DEMO), "--port", str(PORT)]
    spawned = time.time()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        while not stream_token():
            if server.poll() is not None:
                sys.exit(f"the server ended with exit code {server.returncode}")
            time.sleep(0.02)
        return {"total": time.time() - spawned}
    finally:
        server.terminate()
        server.wait()


def stream_token() -> bool:
    """Ask for a completion; True once its first token has arrived, False while the server is not ready."""
    body = {"model": "dummy", "prompt": PROMPT, "max_tokens": 2, "temperature": 0, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status == 503:
            return False
        first = answer.readline().decode()
        if answer.status != 200 or not first.startswith("data: {") or "error" in first:
            sys.exit(f"status {answer.status}: {first}")
        return True
    except (ConnectionError, TimeoutError):
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    runs = {
        "engine, empty cache": start_engine,
        "engine, filled cache": start_engine,
        "server, filled cache": start_server,
        "server, again": start_server,
    }
    with tempfile.TemporaryDirectory() as cache:
        for name, start in runs.items():
            caches = {"TRITON_CACHE_DIR": f"{cache}/kernels", "PYTHONPYCACHEPREFIX": f"{cache}/bytecode"}
            environment = {**os.environ, **caches, "PYTHONDONTWRITEBYTECODE": ""}
            result = results[name] = start(arguments.model, arguments.device, environment)
            print(f"{name:22}", "  ".join(f"{k} {v:.2f} s" for k, v in result.items()), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
