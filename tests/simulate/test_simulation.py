"""The simulator: workloads, traces, clients, and the acceptance numbers at a reduced size."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lightllm.cli.simulate import SimulateCommand
from lightllm.config.settings import SchedulerSettings
from lightllm.errors import ConfigError
from lightllm.scheduler.cost import StepCost
from lightllm.simulate.clients import ClosedLoop, OpenLoop
from lightllm.simulate.experiment import Conditions, parse_variant, run_faithful, run_variant
from lightllm.simulate.report import Result, write_plot
from lightllm.simulate.simulation import Setup, Simulation, finished
from lightllm.simulate.trace import read_trace
from lightllm.simulate.workload import WORKLOADS, Job, Workload, find_workload, uniform

SETTINGS = SchedulerSettings(max_running=128, max_step_tokens=2048, max_waiting=100_000)


@pytest.mark.parametrize(
    ("name", "prompt_mean", "output_mean"), [("d1", 2064, 3072), ("d2", 4000, 4000), ("d3", 3072, 2064)]
)
def test_workloads_have_the_published_means(name: str, prompt_mean: float, output_mean: float) -> None:
    jobs = list(islice(find_workload(name).jobs(0), 2000))
    assert np.mean([len(job.prompt) for job in jobs]) == pytest.approx(prompt_mean, rel=0.03)
    assert np.mean([job.output_len for job in jobs]) == pytest.approx(output_mean, rel=0.03)
    again = list(islice(find_workload(name).jobs(0), 3))
    assert [len(job.prompt) for job in again] == [len(job.prompt) for job in jobs[:3]]


def test_the_heavy_tail_has_its_quantiles() -> None:
    outputs = [job.output_len for job in islice(find_workload("heavy").jobs(1), 4000)]
    assert np.percentile(outputs, [10, 50, 90]) == pytest.approx([663, 1954, 3872], rel=0.06)


def test_prefixes_are_shared_and_hit() -> None:
    conditions = Conditions(SETTINGS, clients=20, seconds=60.0, warm_up=5.0)
    summary = run_variant(parse_variant("past_future"), WORKLOADS["chat"], conditions, 0).summary(warm_up=5.0)
    assert summary.hit_share > 0.8 and summary.sla_share == 1.0


def test_times_are_those_of_the_cost_model() -> None:
    job = Job(np.arange(2, 102, dtype=np.int32), 5, 10)
    setup = Setup(SETTINGS, StepCost(1.0, 0.01, 0.001), 1000)
    record = Simulation(setup, OpenLoop(iter([job]), 1e9, 0), longest=200).run(lambda _: False)
    (life,) = record.ended
    assert life.ttft == pytest.approx(1.0 + 100 * 0.01)
    assert life.max_gap == pytest.approx(1.0 + 0.01 + 103 * 0.001)
    assert life.num_tokens == 5 and record.end == pytest.approx(2.0 + sum(1.01 + c / 1000 for c in range(100, 104)))


def test_clients_that_lose_patience_ask_again() -> None:
    jobs = iter([Job(np.full(50, 5 + n, np.int32), 40, 50) for n in range(100)])
    clients = ClosedLoop(jobs, 4, patience=3.0)
    settings = SchedulerSettings(max_running=1, max_step_tokens=64)
    record = Simulation(Setup(settings, StepCost(0.1, 0.0), 500), clients, longest=100).run(finished(4))
    summary = record.summary()
    assert summary.num_finished == 4 and summary.num_gave_up > 3
    assert summary.ttft_p99 < 3.3


def test_time_passes_while_everybody_is_refused() -> None:
    """Clients whose prompts are too long for their target ask again and again, though no step runs."""
    jobs = Workload("long", uniform(400, 600), uniform(20, 40), 50).jobs(0)
    settings = SchedulerSettings(max_running=8, max_step_tokens=64, policy="deadline")
    setup = Setup(settings, StepCost(0.1, 0.0), 5000, ttft_target=0.3, refuse_late=True)
    simulation = Simulation(setup, ClosedLoop(jobs, 4, patience=1e9), longest=700)
    summary = simulation.run(lambda run: run.now >= 30.0 or run.scheduler.counters.num_refused > 10_000).summary()
    assert summary.seconds >= 30.0 and 0 < summary.num_refused <= 4 * 30.0 / 0.1


TRACE = "arrival,prompt_tokens,output_tokens,tenant\n0,10,5,a\n0.5,20,6,b\n"


def test_traces_in_both_formats(tmp_path: Path) -> None:
    table, lines = tmp_path / "trace.csv", tmp_path / "trace.jsonl"
    table.write_text(TRACE)
    rows = [
        {"arrival": 0, "prompt_tokens": 10, "output_tokens": 5},
        {"arrival": 1, "prompt_tokens": 1, "output_tokens": 2},
    ]
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    assert [(len(j.prompt), j.output_len, j.tenant) for j in read_trace(table, 100)] == [(10, 5, "a"), (20, 6, "b")]
    assert [(len(j.prompt), j.arrival) for j in read_trace(lines, 100)] == [(10, 0.0), (1, 1.0)]
    table.write_text("\ufeff" + table.read_text())  # as spreadsheets write it
    assert [len(j.prompt) for j in read_trace(table, 100)] == [10, 20]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("arrival,prompt_tokens,output_tokens\n0,10,5\nx,10,5\n", "line 3: could not convert string to float"),
        ("arrival,prompt_tokens,output_tokens\n0,0,5\n", "line 2: prompt_tokens must be a whole .*, got 0"),
        ("arrival,prompt_tokens,output_tokens\n0,1,5\n\n0,10.5,5\n", "line 4: invalid literal for int.*10.5"),
        ("arrival,prompt_tokens,output_tokens\n0,999,5\n", "a prompt of 999 and an output of up to 5 exceed 1000"),
        ("arrival,prompt_tokens\n0,10\n", r"line 2: needs .* missing \['output_tokens'\]"),
        ("arrival,prompt_tokens,output_tokens,cost\n0,1,1,1\n", r"line 2: .* unknown \['cost'\]"),
        ("arrival,prompt_tokens,output_tokens\n5,1,1\n4,1,1\n", "line 3: arrival 4 comes before"),
        ("arrival,prompt_tokens,output_tokens\n", "holds no requests"),
        ("", "holds no requests"),
        ("arrival,prompt_tokens,output_tokens\n0,1," + "5" * 200_000, "after line 1: field larger than"),
    ],
)
def test_a_bad_trace_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_trace(path, 1000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_workload("d9"), "workload must be one of d1, d2, d3, heavy, chat, tenants, got 'd9'"),
        (lambda: parse_variant("lifo/oracle"), "policy must be one of fcfs, .*got 'lifo'"),
        (lambda: parse_variant("guess"), "estimator must be one of conservative, .*oracle, got 'guess'"),
        (lambda: parse_variant("fixed:nan"), "nan is no output length"),
        (lambda: parse_variant("fixed:2.5"), "2.5 is no output length"),
        (lambda: parse_variant("watermark:high"), "'high' is not a number"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    variants = ("fcfs/past_future", "oracle")
    command = SimulateCommand(
        workload=("chat",), variant=variants, seeds=2, seconds=20.0, warm_up=5.0, clients=8, json=str(path)
    )
    assert command.run() == 0
    printed = capsys.readouterr().out
    assert "goodput tok/s" in printed and "fcfs/past_future" in printed
    results = json.loads(path.read_text())["results"]
    assert [result["variant"] for result in results] == list(variants)
    assert all(len(result["seeds"]) == 2 for result in results)


def test_what_nobody_measured_is_null_and_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    command = SimulateCommand(workload=("chat",), seconds=0.001, warm_up=0.0, json=str(tmp_path / "out.json"))
    assert command.run() == 0
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["mean"]["num_finished"] == 0 and result["mean"]["ttft_p50"] is None
    with pytest.raises(ConfigError, match="cannot write"):
        replace(command, json=str(tmp_path / "out.json" / "below")).run()


def test_the_faithful_set_up_has_the_pool_asked_for() -> None:
    with pytest.raises(ConfigError, match="total_tokens of 2000 cannot hold"):
        SimulateCommand(faithful=3, total_tokens=2000).run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", 0),
        ("clients", 0),
        ("total_tokens", 0),
        ("rate", 0.0),
        ("seconds", float("nan")),
        ("warm_up", -1.0),
        ("patience", float("nan")),
        ("faithful", -5),
    ],
)
def test_numbers_that_no_simulation_can_have_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be .*, got {value}"):
        SimulateCommand(**{name: value}).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["workload", "variant"])
def test_nothing_to_simulate_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} names nothing"):
        SimulateCommand(**{name: ()}).run()  # type: ignore[arg-type]


def test_a_pool_too_small_for_the_workload_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"total_tokens of 2000 cannot hold a prompt of \d+ tokens and an output of"):
        SimulateCommand(total_tokens=2000).run()


def test_a_trace_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    assert SimulateCommand(trace=str(path), warm_up=0.0).run() == 0
    assert "| 2 | 0 | 0 |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no request of the trace ended after the warm-up of 300 s"):
        SimulateCommand(trace=str(path)).run()


TENTH = Workload("d1/10", uniform(4, 410), uniform(205, 410), 500)


def test_the_faithful_set_up_at_a_tenth() -> None:
    summary = run_faithful(parse_variant("past_future_sampled"), TENTH, 200, 0, total_tokens=12_000).summary()
    assert summary.num_finished == 200 and summary.evictions_per_finished < 0.15
    oracle = run_faithful(parse_variant("oracle:0.03"), TENTH, 200, 0, total_tokens=12_000).summary()
    assert oracle.evictions_per_finished == 0.0 and oracle.seconds < summary.seconds * 1.1


def test_past_future_beats_worst_case_and_nears_the_oracle() -> None:
    """The comparison of docs/scheduling.md with lengths and pool a tenth as large."""
    cost = StepCost(base=0.0125, per_token=7.2e-5, per_context=1e-6)
    conditions = Conditions(SETTINGS, clients=60, seconds=40.0, warm_up=15.0, total_tokens=12_000, cost=cost)
    summaries = {
        name: run_variant(parse_variant(name), TENTH, conditions, 0).summary(warm_up=15.0)
        for name in ("past_future", "oracle:0", "conservative:0")
    }
    goodput = {name: summary.goodput for name, summary in summaries.items()}
    assert goodput["past_future"] > 0.9 * goodput["oracle:0"]
    assert goodput["past_future"] > 1.05 * goodput["conservative:0"]
    assert summaries["past_future"].sla_share > 0.93


def test_the_plot_is_a_picture_or_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    summary = run_faithful(parse_variant("watermark:0.9"), TENTH, 5, 0, total_tokens=12_000).summary()
    results = [Result("d1", "a", (summary, summary)), Result("d1", "b", (summary,))]
    if find_spec("matplotlib") is None:
        with pytest.raises(ConfigError, match="matplotlib is not installed"):
            write_plot(path, results)
    else:
        write_plot(path, results)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_what_depends_on_a_device_must_be_given() -> None:
    setup = Setup(SchedulerSettings(max_step_tokens=64), StepCost(1.0, 0.01), 1000)
    with pytest.raises(ConfigError, match="max_running must be a number here"):
        Simulation(setup, OpenLoop(iter(()), 1.0, 0), longest=100)
