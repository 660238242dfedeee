"""What the server counts: declared names, a board per process, one exposition over all boards.

Knows numbers; it does not decide when something is counted. `exposition` is imported by its own name, since
only the process that answers `/metrics` needs prometheus_client.
"""

from lightllm.metrics import names
from lightllm.metrics.board import Board, BoardHandle, Counter, Gauge, Histogram, MetricSet
from lightllm.metrics.names import Metric, describe

__all__ = [
    "Board",
    "BoardHandle",
    "Counter",
    "Gauge",
    "Histogram",
    "Metric",
    "MetricSet",
    "describe",
    "names",
]
