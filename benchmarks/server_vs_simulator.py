"""Does the simulator predict the server? The demo model on the CPU under bursts of three times its memory.

Each repeat starts a server. While it answers other requests, it fits what its steps cost and shows that in /metrics;
then it takes bursts of streamed requests over HTTP. The simulator takes the arrivals and lengths that the server saw,
with the fitted cost, and says what the goodput should have been. A burst needs three times the KV pool and arrives at
once; the next follows when the simulator says that the first is just done. Outputs end by themselves: `max_tokens` is
a limit. The target for the first token is half of the time of a burst, so that goodput hangs on the engine's speed.

The same is asked of a cost that `lightllm bench offline --cost-model` fits to the engine alone, without HTTP and
detokenizer beside it: on a CPU these take time from the engine, which the second ratio shows.

    python benchmarks/server_vs_simulator.py [--repeats 5] [--json PATH]

Needs two quiet cores: one for the engine, one for everything else.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightllm.bench.http_stream import Target, request
from lightllm.config.settings import SchedulerSettings
from lightllm.scheduler.cost import StepCost, load_step_cost
from lightllm.simulate.clients import OpenLoop
from lightllm.simulate.record import Record, Targets
from lightllm.simulate.simulation import Setup, Simulation
from lightllm.simulate.workload import Job

RESULT = Path(__file__).parent / "results" / "scheduling" / "server_vs_simulator.json"
POOL = 1000
BURST = 28
NUM_BURSTS = 8
MOST_TOKENS = 256
STOP_IDS = list(range(10, 4000, 25))
"""At a high temperature any token is about as likely as any other: one in 25 ends an answer, past `min_tokens`."""
GAP = 1.5
SETTINGS = SchedulerSettings(max_running=256, max_step_tokens=512)
ENGINE = ["--device", "cpu", "--cpu-threads", "1", "--max-total-tokens", str(POOL), "--max-step-tokens", "512"]
_COST = "lightllm_step_cost_seconds"
_COEFFICIENTS = ("base", "per_token", "per_context", "per_pair")
LIGHTLLM = [sys.executable, "-m", "lightllm.cli.main"]


@dataclass
class Asked:
    """One request: what is asked, and what its client saw, in seconds after the first arrival."""

    prompt: list[int]
    min_tokens: int
    arrival: float = 0.0
    first: float = float("inf")
    last: float = 0.0
    max_gap: float = 0.0
    output_len: int = 0

    def job(self) -> Job:
        return Job(np.array(self.prompt, np.int32), self.output_len, MOST_TOKENS, arrival=self.arrival)


@dataclass
class Outcome:
    """Goodput in tokens (prompt and output) per second; seconds."""

    goodput: float
    within_targets: float
    ttft_p50: float
    ttft_p99: float
    seconds: float
    engine_steps: float
    engine_seconds: float
    preemptions: float


def fit_cost(path: Path) -> None:
    """Write the engine's own step-cost model, from a ragged load as large as the pool."""
    shape = ["--workload", "ragged", "--requests", "48", "--input-len", "16-64", "--output-len", "32-160"]
    command = [*LIGHTLLM, "bench", "offline", *ENGINE, *shape, "--repeats", "2", "--cost-model", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def questions(seed: int) -> list[Asked]:
    random = np.random.default_rng(seed)
    return [
        Asked(random.integers(10, 4000, int(random.integers(16, 65))).tolist(), int(random.integers(16, 97)))
        for _ in range(BURST * NUM_BURSTS)
    ]


class Server:
    """A server process of its own; `with` stops it."""

    def __init__(self, log: Path) -> None:
        with log.open("w") as out:
            command = [*LIGHTLLM, "serve", "--port", "0", *ENGINE]
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while not (found := re.search(r"ready at (http://\S+)", log.read_text())):
            if self._process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        self.target = Target.parse(found[1])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    async def metrics(self) -> dict[str, float]:
        async with request(self.target, "GET", "/metrics") as lines:
            pairs = [line.split() async for line in lines if line.startswith(b"lightllm_")]
        return {pair[0].decode(): float(pair[1]) for pair in pairs if len(pair) == 2}

    async def cost(self) -> StepCost:
        """The step cost as fitted so far."""
        gauges = await self.metrics()
        return StepCost(**{name: gauges.get(f'{_COST}{{coefficient="{name}"}}', 0.0) for name in _COEFFICIENTS})

    async def learn(self, asked: list[Asked]) -> StepCost:
        """Serve the requests all at once; the median of the step costs fitted meanwhile."""
        work = asyncio.create_task(self.serve(asked, 0.0))
        seen = []
        while not work.done():
            await asyncio.sleep(0.25)
            seen.append(asdict(await self.cost()))
        await work
        return StepCost(**{name: float(np.median([cost[name] for cost in seen])) for name in _COEFFICIENTS})

    async def serve(self, asked: list[Asked], period: float) -> None:
        """Send the requests in bursts, `period` seconds apart, and note what came back."""
        begun = time.perf_counter()

        async def send(number: int, one: Asked) -> None:
            await asyncio.sleep(max(0.0, begun + period * (number // BURST) - time.perf_counter()))
            one.arrival = time.perf_counter() - begun
            body = {
                "model": "lightllm-demo",
                "prompt": one.prompt,
                "max_tokens": MOST_TOKENS,
                "min_tokens": one.min_tokens,
                "temperature": 2.0,
                "stop_token_ids": STOP_IDS,
                "seed": number,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            async with request(self.target, "POST", "/v1/completions", json.dumps(body).encode()) as lines:
                async for line in lines:
                    if line.startswith(b"data: {"):
                        self._note(one, line[6:], time.perf_counter() - begun)

        await asyncio.gather(*(send(number, one) for number, one in enumerate(asked)))

    @staticmethod
    def _note(one: Asked, event: bytes, now: float) -> None:
        """Chunks are timed and not decoded: the client must not take the engine's core."""
        if b'"usage":{' in event:
            one.output_len = json.loads(event)["usage"]["completion_tokens"]
        elif b'"error"' in event:
            raise SystemExit(f"the server answered {event.decode()}")
        else:
            one.max_gap = 0.0 if one.first == float("inf") else max(one.max_gap, now - one.last)
            one.first = min(one.first, now)
            one.last = now


def measured(asked: list[Asked], targets: Targets, gained: dict[str, float]) -> Outcome:
    waits = np.array([one.first - one.arrival for one in asked])
    good = [
        one
        for one, wait in zip(asked, waits.tolist(), strict=True)
        if wait <= targets.ttft and one.max_gap <= targets.gap
    ]
    seconds = max(one.last for one in asked)
    goodput = sum(len(one.prompt) + one.output_len for one in good) / seconds
    p50, p99 = np.percentile(waits, [50, 99]).tolist()
    return Outcome(
        goodput,
        len(good) / len(asked),
        p50,
        p99,
        seconds,
        gained["lightllm_engine_steps_total"],
        gained["lightllm_step_seconds_sum"],
        gained["lightllm_preemptions_total"],
    )


def simulate(jobs: list[Job], cost: StepCost) -> Record:
    clients = OpenLoop(iter(jobs), None, 0)
    return Simulation(Setup(SETTINGS, cost, POOL), clients, longest=POOL).run(lambda _: False)


def predicted(record: Record, targets: Targets) -> Outcome:
    summary = record.summary(targets)
    return Outcome(
        summary.goodput,
        summary.sla_share,
        summary.ttft_p50,
        summary.ttft_p99,
        record.end,
        summary.num_steps,
        float(record.steps()[:, 1].sum()),
        record.counters.num_preemptions,
    )


def repeat(seed: int) -> dict[str, Any]:
    """One server's life and its simulation."""
    asked = questions(seed)
    with tempfile.TemporaryDirectory() as folder:
        cost_file = Path(folder) / "cost.json"
        fit_cost(cost_file)
        offline_cost, machine = load_step_cost(cost_file), json.loads(cost_file.read_text())["machine"]
        expected = [replace(one, output_len=one.min_tokens + 25) for one in asked[:BURST]]
        with Server(Path(folder) / "log") as server:
            cost = asyncio.run(server.learn(questions(seed + 1000)))
            burst_seconds = simulate([one.job() for one in expected], cost).end
            before = asyncio.run(server.metrics())
            asyncio.run(server.serve(asked, burst_seconds))
            gained = {name: value - before.get(name, 0.0) for name, value in asyncio.run(server.metrics()).items()}
    targets = Targets(ttft=burst_seconds / 2, gap=GAP)
    served = measured(asked, targets, gained)
    jobs = sorted((one.job() for one in asked), key=lambda job: job.arrival or 0.0)
    simulated = predicted(simulate(jobs, cost), targets)
    offline = predicted(simulate(jobs, offline_cost), targets)
    demand = sum(len(one.prompt) + one.output_len for one in asked) / NUM_BURSTS / POOL
    return {
        "goodput_ratio": round(served.goodput / simulated.goodput, 3),
        "goodput_ratio_offline_cost": round(served.goodput / offline.goodput, 3),
        "burst_over_pool": round(demand, 2),
        "ttft_target": round(targets.ttft, 3),
        "server": {name: round(value, 4) for name, value in asdict(served).items()},
        "simulator": {name: round(value, 4) for name, value in asdict(simulated).items()},
        "step_cost": asdict(cost),
        "offline_step_cost": asdict(offline_cost),
        "machine": machine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = []
    print("goodput: server  simulator  ratio  (offline cost)   within: server  simulator   TTFT p50: server  simulator")
    for seed in range(arguments.repeats):
        row = repeat(seed)
        rows.append(row)
        served, simulated = row["server"], row["simulator"]
        print(
            f"{served['goodput']:15.0f} {simulated['goodput']:10.0f} {row['goodput_ratio']:6.3f}"
            f" {row['goodput_ratio_offline_cost']:15.3f}"
            f" {served['within_targets']:15.1%} {simulated['within_targets']:10.1%}"
            f" {served['ttft_p50']:18.2f} {simulated['ttft_p50']:10.2f}",
            flush=True,
        )
        about = {"command": "python benchmarks/server_vs_simulator.py", "machine": row["machine"]}
        arguments.json.write_text(json.dumps({"about": about, "repeats": rows}, indent=1) + "\n")
    for name in ("goodput_ratio", "goodput_ratio_offline_cost"):
        ratios = [row[name] for row in rows]
        print(f"{name}: mean {np.mean(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
