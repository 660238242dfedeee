"""From starting the interpreter to the first token, with an empty kernel cache and with a filled one.

    python benchmarks/startup.py benchmarks/models/llama3-8b [--json FILE]

Dummy weights of the model's shape, made on the device. Each run is a process of its own; its phases are what it prints
of itself, the total is measured from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHILD = """
import json, sys, time
begun = time.time()
from pathlib import Path
from lightllm.bench.pipeline import TokenPipeline
from lightllm.bench.workloads import WorkloadShape, make_requests
from lightllm.config.settings import ModelSettings, Settings
imported = time.time()
directory = sys.argv[1]
pipeline = TokenPipeline(Settings(model=ModelSettings(model=directory, dummy=True)), Path(directory))
built = time.time()
shape = WorkloadShape("first token", 1, (128, 128), (2, 2))
pipeline.run(make_requests(shape, pipeline.facts["vocab_size"], seed=1))
answered = time.time()
print(json.dumps({"import": imported - begun, "engine": built - imported, "first_tokens": answered - built}))
"""


def run(model: str, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_CACHE_DIR": cache}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, model], capture_output=True, text=True, check=True, env=environment
    )
    total = time.perf_counter() - begun
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "total": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        results = {name: run(arguments.model, cache) for name in ("empty cache", "filled cache", "filled cache, again")}
    for name, result in results.items():
        print(f"{name:20}", "  ".join(f"{phase} {seconds:.2f} s" for phase, seconds in result.items()))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
