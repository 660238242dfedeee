"""Timing a kernel on a GPU, apart from what it costs to launch it.

A time is the median over replays of a CUDA graph that holds many launches on rotating inputs, which together are
larger than the L2 cache: each launch finds its input in memory, as it does between the layers of a model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

Launch = Callable[[], object]

CACHE_BYTES = 256 << 20
"""Rotating inputs together exceed this, several times the L2 cache."""
WARM_UP = 0.02
"""Seconds of replays before the first is timed: a device that was idle runs some percent slower at first."""
LEAST_SECONDS = 0.004
FEWEST, MOST = 5, 40
"""Replays that are timed."""
FEWEST_LAUNCHES = 16
"""Launches in a graph, which share the microseconds that it takes to start."""
TURNS = 3
"""Times that each of several groups is timed."""


def copies_of(size: int) -> int:
    """How many inputs of so many bytes to rotate through."""
    return max(2, min(64, math.ceil(CACHE_BYTES / max(1, size))))


def time_launches(launches: Sequence[Launch]) -> float:
    """Median seconds of one launch."""
    launches = _enough(launches)
    return _replay(_record(launches)) / len(launches)


def time_in_turn(groups: Sequence[Sequence[Launch]]) -> list[float]:
    """As `time_launches` for each group, timed by turns: a device that comes to its power limit slows down, so that of
    groups timed one after another the later ones would seem the slower."""
    groups = [_enough(launches) for launches in groups]
    graphs = [_record(launches) for launches in groups]
    turns = [[_replay(graph) for graph in graphs] for _ in range(TURNS)]
    return [_median(times) / len(launches) for times, launches in zip(zip(*turns, strict=True), groups, strict=True)]


def _enough(launches: Sequence[Launch]) -> list[Launch]:
    return [*launches] * math.ceil(FEWEST_LAUNCHES / len(launches))


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Median seconds of a replay, the device having warmed up."""
    started = time.perf_counter()
    while time.perf_counter() - started < WARM_UP:
        graph.replay()
        torch.cuda.synchronize()
    times: list[float] = []
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    while len(times) < FEWEST or (sum(times) < LEAST_SECONDS and len(times) < MOST):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return _median(times)


def _median(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 2]


def _record(launches: Sequence[Launch]) -> torch.cuda.CUDAGraph:
    """The launches as a graph, the first two of them having run before: that compiles and allocates."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for launch in launches[:2]:
            launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    return graph
