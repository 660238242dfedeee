"""Every metric lightllm reports, declared once.

Knows names, kinds, units, labels with their closed sets of values, and buckets; a metric that is not here
cannot be written. It holds no values (`board` does). A label value outside its set counts as "other" where
the set has that member, and is refused elsewhere. Names follow Prometheus: base units; counters end in `_total`.

Bucket lists are those of vLLM, so that dashboards made for one fit the other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from lightllm.errors import LightLLMError, error_tree

PREFIX = "lightllm_"
OTHER = "other"

Kind = Literal["counter", "gauge", "histogram", "info"]
Merge = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Label:
    """A label and every value it can take."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `merge` says how gauges of several workers become one; counters and histograms add up."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: Merge = "sum"
    sparse: bool = False
    """Series that are still zero are left out of the exposition."""

    @property
    def exposed_name(self) -> str:
        return self.name + "_total" if self.kind == "counter" else self.name

    @property
    def series(self) -> tuple[tuple[str, ...], ...]:
        """Label values of every series, in the order of the board."""
        return tuple(product(*(label.values for label in self.labels)))

    @property
    def width(self) -> int:
        """Numbers one series takes: a histogram has its buckets, the one above all bounds, and the sum."""
        return {"histogram": len(self.buckets) + 2, "info": 0}.get(self.kind, 1)

    def values_of(self, given: Mapping[str, str]) -> tuple[str, ...]:
        """The series that `given` labels select. Raises ValueError naming what is unknown or missing."""
        if given.keys() != {label.name for label in self.labels}:
            expected = [label.name for label in self.labels]
            raise ValueError(f"{self.name} has the labels {expected}, got {sorted(given)}")
        return tuple(self._value(label, given[label.name]) for label in self.labels)

    def _value(self, label: Label, value: str) -> str:
        if value in label.values:
            return value
        if OTHER in label.values:
            return OTHER
        raise ValueError(f"{self.name}: {label.name} is one of {list(label.values)}, got {value!r}")


FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0),
    *(480.0, 960.0, 1920.0, 7680.0),
)
STEP_TOKENS = tuple(float(count) for count in (1, *(8 << shift for shift in range(12))))
TOKEN_COUNTS = (*(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5)), 1e6)
STEP_SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)

FINISH_REASONS = ("stop", "length", "abort", "error")
WORKERS = ("frontend", "engine", "rank", "detokenizer", OTHER)
ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"),
    *("/v1/models", "/tokenize", "/detokenize", "/generate", "/generate_stream"),
    *("/health", "/live", "/ready", "/metrics", "/openapi.json", OTHER),
)
_STATUS_CODES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 499, 500, 501, 502, 503, 504)
STATUSES = (*map(str, _STATUS_CODES), OTHER)


def _error_codes() -> tuple[str, ...]:
    """Of the tree as written, whatever else a process has imported: every process must agree on the board."""
    own = (error.code for error in error_tree() if error.__module__ == LightLLMError.__module__)
    return (*sorted(set(own)), OTHER)


_TENANT = Label("tenant", (OTHER,))
"""The tenants that the settings name (`for_tenants`); all the rest are "other"."""


def _counter(name: str, help: str, unit: str = "", *labels: Label, sparse: bool = False) -> Metric:
    return Metric(PREFIX + name, "counter", help, unit, labels, sparse=sparse)


def _gauge(name: str, help: str, unit: str = "", *labels: Label, merge: Merge = "sum") -> Metric:
    return Metric(PREFIX + name, "gauge", help, unit, labels, merge=merge)


def _histogram(name: str, help: str, unit: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(PREFIX + name, "histogram", help, unit, buckets=buckets)


REQUESTS_RUNNING = _gauge("requests_running", "Requests in the running batch.", "requests")
REQUESTS_WAITING = _gauge("requests_waiting", "Requests accepted and not yet running.", "requests")
KV_CACHE_USAGE = _gauge(
    "kv_cache_usage_ratio", "Share of KV slots held by requests, of the fullest engine.", "ratio", merge="max"
)
KV_SLOT_CAPACITY = _gauge("kv_slot_capacity", "Token slots of the KV pool.", "slots")
KV_SLOTS = _gauge(
    "kv_slots",
    "Token slots that are free, cached for reuse, or held by requests; together the capacity.",
    "slots",
    Label("state", ("free", "cached", "held")),
)
PREFIX_CACHE_QUERIED = _counter("prefix_cache_queried_tokens", "Prompt tokens looked up in the prefix cache.", "tokens")
PREFIX_CACHE_HIT = _counter("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.", "tokens")
EVICTED_TOKENS = _counter("evicted_tokens", "Cached tokens evicted to make room.", "tokens")
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of accepted requests.", "tokens")
GENERATION_TOKENS = _counter("generation_tokens", "Tokens generated.", "tokens")
REQUESTS_FINISHED = _counter(
    "requests_finished",
    "Requests that ended, by finish reason.",
    "requests",
    Label("finish_reason", FINISH_REASONS),
)
REQUESTS_REFUSED = _counter(
    "requests_refused",
    "Well-formed requests refused before they ran, by error code.",
    "requests",
    Label("reason", _error_codes()),
    sparse=True,
)
PREEMPTIONS = _counter("preemptions", "Times a running request gave up its KV and was queued again.")
TENANT_QUERIED = _counter(
    "tenant_prefix_cache_queried_tokens",
    "Prompt tokens looked up in the prefix cache, by tenant (--tenant-weight).",
    "tokens",
    _TENANT,
)
TENANT_HIT = _counter(
    "tenant_prefix_cache_hit_tokens",
    "Prompt tokens found in the prefix cache, by tenant (--tenant-weight).",
    "tokens",
    _TENANT,
)
TENANT_PREEMPTIONS = _counter(
    "tenant_preemptions", "Preemptions of running requests, by tenant (--tenant-weight).", "", _TENANT
)
TENANT_REFUSED = _counter(
    "tenant_requests_refused", "Requests refused, by tenant (--tenant-weight).", "requests", _TENANT
)
CLIENT_DISCONNECTS = _counter("client_disconnects", "Requests aborted because the client went away.", "requests")
ENGINE_STEPS = _counter("engine_steps", "Steps the engine has run.", "steps")
STEP_TOKENS_RUN = _histogram("step_tokens", "Tokens computed in one step.", "tokens", STEP_TOKENS)
SCHEDULER_SECONDS = _histogram("scheduler_seconds", "Time the scheduler spent on one step.", "seconds", STEP_SECONDS)
STEP_DURATION = _histogram("step_seconds", "Time from the launch of a step to its result.", "seconds", STEP_SECONDS)
STEP_COST = _gauge(
    "step_cost_seconds",
    "Step-cost model (docs/scheduling.md) as fitted while serving: seconds per step, token, context slot and pair.",
    "seconds",
    Label("coefficient", ("base", "per_token", "per_context", "per_pair")),
    merge="max",
)
TIME_TO_FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds",
    "Time from the arrival of a request to its first token.",
    "seconds",
    FIRST_TOKEN_SECONDS,
)
INTER_TOKEN_LATENCY = _histogram(
    "inter_token_latency_seconds", "Time between two tokens of a request.", "seconds", TOKEN_SECONDS
)
TIME_PER_OUTPUT_TOKEN = _histogram(
    "time_per_output_token_seconds",
    "Mean time per token after the first, one value per request.",
    "seconds",
    TOKEN_SECONDS,
)
REQUEST_LATENCY = _histogram(
    "e2e_request_latency_seconds",
    "Time from the arrival of a request to its last token.",
    "seconds",
    REQUEST_SECONDS,
)
QUEUE_TIME = _histogram(
    "request_queue_time_seconds", "Time a request waited before it first ran.", "seconds", REQUEST_SECONDS
)
PREFILL_TIME = _histogram(
    "request_prefill_time_seconds",
    "Time from a request's first step to its first token.",
    "seconds",
    REQUEST_SECONDS,
)
REQUEST_PROMPT_TOKENS = _histogram("request_prompt_tokens", "Prompt tokens of a request.", "tokens", TOKEN_COUNTS)
REQUEST_GENERATION_TOKENS = _histogram(
    "request_generation_tokens", "Tokens generated for a request.", "tokens", TOKEN_COUNTS
)
HTTP_REQUESTS = _counter(
    "http_requests",
    "HTTP requests answered, by route and status.",
    "requests",
    Label("route", ROUTES),
    Label("status", STATUSES),
    sparse=True,
)
WORKER_RESTARTS = _counter(
    "worker_restarts", "Times a process of the server was started again.", "", Label("worker", WORKERS)
)
PROCESS_START_TIME = _gauge(
    "process_start_time_seconds",
    "Start of the oldest process, seconds since the epoch.",
    "seconds",
    merge="min",
)
INFO = Metric(
    PREFIX + "server_info", "info", "Always 1; the labels say what is served: model_name, version and others."
)

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""In the order of declaration, which is the order of the board."""


def for_tenants(tenants: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of a server whose settings name these tenants."""
    label = Label("tenant", tuple(dict.fromkeys((*tenants, OTHER))))
    return tuple(replace(metric, labels=(label,)) if metric.labels == (_TENANT,) else metric for metric in ALL)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric as the documentation shows it."""

    name: str
    kind: str
    unit: str
    labels: str
    buckets: str
    merge: str
    help: str


def describe(metrics: tuple[Metric, ...] = ALL) -> list[MetricRow]:
    """One row per metric, for docs/metrics.md."""
    return [
        MetricRow(
            name=metric.exposed_name,
            kind=metric.kind,
            unit=metric.unit,
            labels="; ".join(f"{label.name}: {', '.join(label.values)}" for label in metric.labels),
            buckets=" ".join(f"{bound:g}" for bound in metric.buckets),
            merge=metric.merge if metric.kind == "gauge" else "",
            help=metric.help,
        )
        for metric in metrics
    ]
