"""docs/metrics.md: every metric with its kind, unit, labels and buckets, from lightllm/metrics/names.py."""

from __future__ import annotations

from markdown import GENERATED, code, table

from lightllm.metrics.names import MetricRow, describe

INTRODUCTION = """\
# Metrics

`GET /metrics` answers in the text format of Prometheus, or in OpenMetrics if the `Accept` header asks for it. The
figures of all processes are added up; gauges are joined as said in the last column. Label values are closed sets, so
the number of series does not grow with traffic.

"""


def page() -> str:
    """The whole page."""
    rows = describe()
    main = table(("metric", "kind", "unit", "meaning", "labels", "joined by"), map(_row, rows))
    buckets = [[code(row.name), row.buckets] for row in rows if row.buckets]
    return GENERATED + INTRODUCTION + main + "\n## Buckets\n\n" + table(("histogram", "upper bounds"), buckets)


def _row(row: MetricRow) -> list[str]:
    return [code(row.name), row.kind, row.unit, row.help, row.labels, row.merge]
