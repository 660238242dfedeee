"""The scheduling tables of docs/scheduling.md: policies and estimators in the simulator, under equal conditions.

    python benchmarks/scheduling.py compare     estimators on d1, d2, d3 and heavy, closed loop of 80 clients
    python benchmarks/scheduling.py faithful    the Past-Future artifact's own set-up (time in decode steps)
    python benchmarks/scheduling.py cold        goodput after 200 finished requests, cold start against warm
    python benchmarks/scheduling.py vtc         two tenants, one asking ten times as often
    python benchmarks/scheduling.py deadline    chat-like load at 1.3 times what the engine can do

Each writes benchmarks/results/scheduling/NAME.json as it goes (and takes up what is there already), and prints its
table. Everything is simulated, so the numbers do not depend on the machine; only `host us` does.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from lightllm.config.settings import SchedulerSettings
from lightllm.simulate.experiment import Conditions, make_simulation, parse_variant, run_faithful, run_variant
from lightllm.simulate.record import Summary
from lightllm.simulate.report import Result, table
from lightllm.simulate.simulation import finished
from lightllm.simulate.workload import find_workload

RESULTS = Path(__file__).parent / "results" / "scheduling"
SETTINGS = SchedulerSettings(max_running=512, max_step_tokens=2048, max_waiting=1_000_000)
COMPARED = ("past_future", "oracle:0.0", "watermark:0.85", "watermark:0.9", "conservative:0.0", "watermark:0.8",
            "past_future_sampled:0.05", "watermark:0.95")  # fmt: skip
Run = tuple[str, str, int, Callable[[], Summary]]


def compare(seeds: int) -> Iterator[Run]:
    conditions = Conditions(SETTINGS, seconds=2400.0, warm_up=400.0)
    for seed in range(seeds):
        for variant in COMPARED:
            for workload in ("d1", "d3", "heavy", "d2"):
                yield workload, variant, seed, lambda w=workload, v=variant, s=seed: _summary(v, w, conditions, s)


def _summary(variant: str, workload: str, conditions: Conditions, seed: int) -> Summary:
    record = run_variant(parse_variant(variant), find_workload(workload), conditions, seed)
    return record.summary(conditions.targets, conditions.warm_up)


def faithful(seeds: int) -> Iterator[Run]:
    for variant in ("past_future_sampled", "oracle:0.03"):
        for workload in ("d3", "d1", "d2"):
            for seed in range(seeds):
                yield workload, variant, seed, lambda w=workload, v=variant, s=seed: _faithful(v, w, s)


def _faithful(variant: str, workload: str, seed: int) -> Summary:
    return run_faithful(parse_variant(variant), find_workload(workload), 3000, seed).summary()


def cold(seeds: int) -> Iterator[Run]:
    """The window from 200 finished requests to 500, and that from 1000 to 1300, of one run from a cold start."""
    for seed in range(seeds):
        for workload in ("heavy", "d1", "d3", "d2"):
            conditions = Conditions(SETTINGS)
            simulation = make_simulation(parse_variant("past_future"), find_workload(workload), conditions, seed)
            for first in (200, 1000):
                simulation.run(finished(first))
                begun = simulation.now
                record = simulation.run(finished(first + 300))
                label = f"past_future after {first}"
                yield workload, label, seed, lambda r=record, t=begun: r.summary(warm_up=t)


def vtc(seeds: int) -> Iterator[Run]:
    """Both tenants ask for more than half of what the engine can do, so that both always wait."""
    settings = replace(SETTINGS, max_running=64)
    conditions = Conditions(settings, rate=100.0, patience=float("inf"), seconds=120.0, warm_up=30.0)
    for seed in range(seeds):
        for variant in ("fcfs/past_future", "vtc/past_future"):
            record = run_variant(parse_variant(variant), find_workload("tenants"), conditions, seed)
            for tenant in (None, "busy", "calm"):
                label = variant if tenant is None else f"{variant} {tenant}"
                yield "tenants", label, seed, lambda r=record, t=tenant: r.summary(warm_up=30.0, tenant=t)


def deadline(seeds: int) -> Iterator[Run]:
    """The rate is 1.3 times the throughput that the engine reaches when everybody always waits."""
    flood = Conditions(SETTINGS, rate=60.0, patience=float("inf"), seconds=100.0, warm_up=50.0)
    most = _summary("fcfs/past_future", "chat", flood, 0)
    rate = 1.3 * most.num_finished / most.seconds
    base = replace(flood, rate=rate, seconds=240.0, warm_up=60.0, ttft_target=10.0)
    cases = (("fcfs/past_future", False), ("deadline/past_future", False), ("deadline/past_future", True))
    for variant, refuse in cases:
        conditions = replace(base, refuse_late=refuse)
        label = variant + (" refusing" if refuse else "")
        for seed in range(seeds):
            yield "chat", label, seed, lambda v=variant, c=conditions, s=seed: _summary(v, "chat", c, s)


EXPERIMENTS = {"compare": compare, "faithful": faithful, "cold": cold, "vtc": vtc, "deadline": deadline}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variant", help="only this one")
    arguments = parser.parse_args()
    path = RESULTS / f"{arguments.name}.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else {}
    for workload, variant, seed, run in EXPERIMENTS[arguments.name](arguments.seeds):
        key = f"{workload} {variant} {seed}"
        if key in known or (arguments.variant and arguments.variant != variant):
            continue
        known[key] = {name: round(value, 4) for name, value in asdict(run()).items()}
        about = {"command": f"python benchmarks/scheduling.py {arguments.name}", "python": platform.python_version()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"about": about, "runs": known}, indent=0) + "\n")
        print(key, round(known[key]["goodput"]), f"{known[key]['sla_share']:.1%}", flush=True)
    groups: dict[tuple[str, str], list[Summary]] = {}
    for key, values in known.items():
        workload, rest = key.split(" ", 1)
        groups.setdefault((workload, rest.rsplit(" ", 1)[0]), []).append(Summary(**values))
    rows = [Result(workload, variant, tuple(summaries)) for (workload, variant), summaries in groups.items()]
    print(table(sorted(rows, key=lambda row: row.workload)))


if __name__ == "__main__":
    main()
