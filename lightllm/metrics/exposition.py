"""Boards of all workers, merged, as Prometheus text, OpenMetrics or JSON.

Knows how boards add up; prometheus_client knows the text formats. A board is read as it is at that moment:
the counts of a histogram are consistent in themselves, its sum may lag by the value being written.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from lightllm.metrics.board import Board
from lightllm.metrics.names import INFO, Metric

_GAUGE_MERGES: dict[str, Callable[[list[float]], float]] = {"sum": math.fsum, "max": max, "min": min}


class Exposition(Collector):
    """What `/metrics` shows of `boards`, which share one layout."""

    def __init__(
        self,
        boards: Sequence[Board],
        *,
        info: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """`info` becomes the labels of `lightllm_server_info`; `labels` are put on every series."""
        self._boards = list(boards)
        self._layout = boards[0].layout
        self._info = dict(info or {})
        self._labels = dict(labels or {})
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The text and its content type, in the format the HTTP `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def snapshot(self) -> dict[str, Any]:
        """The same as plain data: name -> kind, unit and series, each with labels and value or counts."""
        numbers = self._merged()
        return {
            metric.exposed_name: {
                "kind": metric.kind,
                "unit": metric.unit,
                "series": [self._as_dict(metric, *series) for series in self._series(metric, numbers)],
            }
            for metric in self._layout.metrics
            if metric.kind != "info"
        } | {INFO.name: {"kind": "info", "unit": "", "series": [{"labels": self._labels | self._info, "value": 1.0}]}}

    def collect(self) -> Iterator[Family]:
        """Called by prometheus_client."""
        numbers = self._merged()
        for metric in self._layout.metrics:
            if metric.kind != "info":
                yield self._family(metric, numbers)
        info = InfoMetricFamily(INFO.name.removesuffix("_info"), INFO.help, labels=list(self._labels))
        info.add_metric(list(self._labels.values()), self._info)
        yield info

    def _merged(self) -> list[float]:
        """One number per place of the board; NaN where no board has a value to show."""
        columns = list(zip(*(board.read() for board in self._boards), strict=True))
        merged = [math.fsum(column) for column in columns]
        for metric in self._layout.metrics:
            if metric.kind == "gauge":
                for start in self._layout.offsets[metric.name].values():
                    merged[start] = _merge_gauge(metric, columns[start])
        return merged

    def _series(self, metric: Metric, numbers: list[float]) -> Iterator[tuple[tuple[str, ...], list[float]]]:
        """Label values and numbers of each series worth showing."""
        for values, start in self._layout.offsets[metric.name].items():
            part = numbers[start : start + metric.width]
            if math.isnan(part[0]) or (metric.sparse and not any(part)):
                continue
            yield values, part

    def _family(self, metric: Metric, numbers: list[float]) -> Family:
        labels = [*self._labels, *(label.name for label in metric.labels)]
        constant = list(self._labels.values())
        unit = metric.unit if metric.name.endswith("_" + metric.unit) else ""
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels, unit=unit)
            for values, part in self._series(metric, numbers):
                histogram.add_metric([*constant, *values], _cumulative(metric, part), part[-1])
            return histogram
        make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = make(metric.name, metric.help, labels=labels, unit=unit)
        for values, part in self._series(metric, numbers):
            family.add_metric([*constant, *values], part[0])
        return family

    def _as_dict(self, metric: Metric, values: tuple[str, ...], part: list[float]) -> dict[str, Any]:
        names = (label.name for label in metric.labels)
        labels = self._labels | dict(zip(names, values, strict=True))
        if metric.kind != "histogram":
            return {"labels": labels, "value": part[0]}
        counts = dict(zip(_bounds(metric), part, strict=False))
        return {"labels": labels, "count": sum(part[:-1]), "sum": part[-1], "buckets": counts}


def _merge_gauge(metric: Metric, column: tuple[float, ...]) -> float:
    present = [value for value in column if not math.isnan(value)]
    if not present:
        return 0.0 if metric.merge == "sum" else math.nan
    return _GAUGE_MERGES[metric.merge](present)


def _bounds(metric: Metric) -> list[str]:
    return [*(f"{bound!r}" for bound in metric.buckets), "+Inf"]


def _cumulative(metric: Metric, part: list[float]) -> list[tuple[str, float]]:
    total, buckets = 0.0, []
    for bound, count in zip(_bounds(metric), part, strict=False):
        total += count
        buckets.append((bound, total))
    return buckets
