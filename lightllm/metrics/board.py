"""A board: the numbers of one process, in shared memory that others read.

Knows where each series lies. One process writes a board, from one thread; any number of processes read it
without asking or locking, since every number is one aligned 8-byte store. The process that owns the tree
creates the boards and keeps them, so a restarted worker goes on with its predecessor's counters.

    byte 0       8        16       24       64
         ├───────┼────────┼────────┼─ ... ──┼─────────────────┬─────┬───────────────────────────────────┐
         │ magic │ layout │ count  │        │ counter, gauge  │ ... │ histogram: buckets, +Inf, sum     │
         ├───────┼────────┼────────┼─ ... ──┼─────────────────┴─────┴───────────────────────────────────┘
                  checksum of names           float64 each; buckets hold their own count, not cumulative
                                              a gauge nobody has set is NaN
"""

import math
import zlib
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

import msgspec

from lightllm.errors import ProtocolError
from lightllm.ipc.memory import Segment
from lightllm.metrics import names
from lightllm.metrics.names import Metric

_MAGIC: Final = 0x6C6C6D5F626F6172
_HEADER_BYTES: Final = 64


class BoardHandle(msgspec.Struct, frozen=True):
    """The descriptor of a board, by number: what a child needs to attach. JSON-able."""

    memory: int

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "BoardHandle":
        return msgspec.json.decode(text, type=cls)


class Layout:
    """Where the series of `metrics` lie: `offsets[metric name][label values]` is an index of a number."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self.metrics = metrics
        self.declared = {metric.name: metric for metric in metrics}
        self.offsets: dict[str, dict[tuple[str, ...], int]] = {}
        self.size = 0
        for metric in metrics:
            self.offsets[metric.name] = starts = {}
            for values in metric.series if metric.width else ():
                starts[values] = self.size
                self.size += metric.width
        self.checksum = zlib.crc32(repr([(m.name, m.kind, m.series, m.buckets) for m in metrics]).encode())


class Board:
    """Numbers of one process. `values` is the live float64 array; `Board.layout` says what is where."""

    def __init__(self, segment: Segment, layout: Layout) -> None:
        self.layout = layout
        self.values = segment.doubles(_HEADER_BYTES)
        self._segment = segment

    @classmethod
    def create(cls, metrics: tuple[Metric, ...] = names.ALL) -> "Board":
        """A board of zeros and unset gauges for `metrics`."""
        layout = Layout(metrics)
        segment = Segment.create(_HEADER_BYTES + 8 * layout.size, "lightllm-board")
        segment.words[0], segment.words[1], segment.words[2] = _MAGIC, layout.checksum, layout.size
        board = cls(segment, layout)
        board.reset_gauges()
        return board

    @classmethod
    def attach(cls, handle: BoardHandle, metrics: tuple[Metric, ...] = names.ALL) -> "Board":
        """The board behind an inherited descriptor, which it then owns.

        Raises ProtocolError if it is no board or one of other metrics.
        """
        layout, segment = Layout(metrics), Segment(handle.memory)
        expected = [_MAGIC, layout.checksum, layout.size]
        if list(segment.words[:3]) != expected or len(segment.bytes_) < _HEADER_BYTES + 8 * layout.size:
            segment.close()
            raise ProtocolError(f"file descriptor {handle.memory} is not a board of these metrics")
        return cls(segment, layout)

    def handle(self) -> BoardHandle:
        return BoardHandle(memory=self._segment.fd)

    @property
    def fds(self) -> tuple[int, ...]:
        """What a child must inherit: `subprocess.Popen(..., pass_fds=board.fds)`."""
        return (self._segment.fd,)

    def reset_gauges(self) -> None:
        """Unsets every gauge: a dead worker runs no requests. Counters and histograms stay."""
        for metric in self.layout.metrics:
            if metric.kind == "gauge":
                for start in self.layout.offsets[metric.name].values():
                    self.values[start] = math.nan

    def read(self) -> list[float]:
        """All numbers now."""
        return list(self.values)

    def close(self) -> None:
        """Closes this process's descriptor and mapping; metrics of this board must not be used any more."""
        self.values.release()
        self._segment.close()


class Counter:
    """Only grows."""

    __slots__ = ("_index", "_values")

    def __init__(self, values: "memoryview[float]", index: int) -> None:
        self._values = values
        self._index = index

    def inc(self, amount: float = 1.0) -> None:
        """Adds `amount`, which is not negative."""
        self._values[self._index] += amount


class Gauge:
    """A value as of now."""

    __slots__ = ("_index", "_values")

    def __init__(self, values: "memoryview[float]", index: int) -> None:
        self._values = values
        self._index = index

    def set(self, value: float) -> None:
        self._values[self._index] = value

    def add(self, amount: float) -> None:
        """Adds `amount`, to zero if the gauge was never set."""
        value = self._values[self._index]
        self._values[self._index] = amount if math.isnan(value) else value + amount


class Histogram:
    """Counts values by bucket; a value equal to a bound is in the bucket of that bound."""

    __slots__ = ("_bounds", "_start", "_sum", "_values")

    def __init__(self, values: "memoryview[float]", start: int, bounds: tuple[float, ...]) -> None:
        self._values = values
        self._start = start
        self._bounds = bounds
        self._sum = start + len(bounds) + 1

    def observe(self, value: float, count: int = 1) -> None:
        """Counts `value`, `count` times: as when every request of a step waited equally long."""
        values = self._values
        values[self._start + bisect_left(self._bounds, value)] += count
        values[self._sum] += value * count

    def observe_many(self, observed: Iterable[float]) -> None:
        values, start, bounds, total = self._values, self._start, self._bounds, 0.0
        for value in observed:
            values[start + bisect_left(bounds, value)] += 1
            total += value
        values[self._sum] += total


class MetricSet:
    """The writing end of a board. Look a metric up once at start, then write to it: well under 1 us each."""

    def __init__(self, board: Board) -> None:
        """Takes the board over from a dead predecessor: gauges are unset, counters go on."""
        self.board = board
        board.reset_gauges()

    def counter(self, metric: Metric, **labels: str) -> Counter:
        """Raises ValueError for a metric of another kind and for unknown labels; so do the next two."""
        return Counter(self.board.values, self._find(metric, "counter", labels))

    def gauge(self, metric: Metric, **labels: str) -> Gauge:
        return Gauge(self.board.values, self._find(metric, "gauge", labels))

    def histogram(self, metric: Metric, **labels: str) -> Histogram:
        return Histogram(self.board.values, self._find(metric, "histogram", labels), metric.buckets)

    def _find(self, metric: Metric, kind: str, labels: dict[str, str]) -> int:
        if metric.kind != kind:
            raise ValueError(f"{metric.name} is a {metric.kind}, not a {kind}")
        layout = self.board.layout
        return layout.offsets[metric.name][layout.declared[metric.name].values_of(labels)]
