"""The settings of one server or one offline engine. Every field is a command-line flag; its docstring is the help.

"auto" values are None here; `lightllm.engine.build` turns each into a value and a reason, and nothing is changed
afterwards. This module knows neither torch nor the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lightllm.config.checks import check_at_least_one, check_not_negative, check_positive
from lightllm.errors import ConfigError

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda"]
EstimatorName = Literal["conservative", "fixed", "watermark", "exponential", "past_future", "past_future_sampled"]
PolicyName = Literal["fcfs", "priority", "shortest", "longest_prefix", "deadline", "vtc"]
PreemptionName = Literal["cheapest", "newest"]
PrefixEvictionName = Literal["lru", "lfu", "priority"]


MOST_CPU_THREADS = 1024


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model, and in what form."""

    model: str | None = None
    """Directory in Hugging Face format, or a hub name; the bundled demo model when omitted."""
    served_model_name: tuple[str, ...] = ()
    """Names the API answers to; the model's own name when omitted."""
    tokenizer: str | None = None
    """Directory of the tokenizer; the model's own when omitted."""
    chat_template: str | None = None
    """File with a Jinja chat template that replaces the model's own."""
    dtype: DTypeName = "auto"
    """Type of weights and activations; auto: the checkpoint's on a GPU, float32 on a CPU."""
    max_model_len: int | None = None
    """Most tokens of prompt and output together; auto: the model's own limit, or what the KV pool holds if less."""
    dummy: bool = False
    """Random weights for a bare config.json, for benchmarks."""
    dummy_seed: int = 0
    """Seed of the dummy weights."""
    allow_unknown_config_keys: bool = False
    """Load a config.json with keys that lightllm does not know, at your own risk."""

    def __post_init__(self) -> None:
        if self.max_model_len is not None and self.max_model_len < 2:
            message = f"max_model_len must be at least 2, a token of prompt and one of output, got {self.max_model_len}"
            raise ConfigError(message, param="max_model_len")
        if "" in self.served_model_name:
            message = "served_model_name is empty; leave it out for the model's own name"
            raise ConfigError(message, param="served_model_name")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The device and its memory."""

    device: DeviceName = "auto"
    """Where the model runs; auto: cuda if there is a usable GPU."""
    max_total_tokens: int | None = None
    """Slots of the KV pool, one per token; auto: from the free memory."""
    memory_fraction: float | None = None
    """Share of the device's memory to use for weights, activations and KV; auto: 0.9 on a GPU, 0.5 of what is free
    (at most 4 GiB of KV) on a CPU."""
    cpu_threads: int | None = None
    """Threads of the CPU backend; auto: OMP_NUM_THREADS if it is set, else one per core."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "max_total_tokens", "cpu_threads")
        if self.cpu_threads is not None and self.cpu_threads > MOST_CPU_THREADS:
            raise ConfigError(f"cpu_threads must be at most {MOST_CPU_THREADS}, got {self.cpu_threads}")
        if self.max_total_tokens == 1:
            raise ConfigError("max_total_tokens must be at least 2, a prompt token and its answer; got 1")
        if self.memory_fraction is not None and not 0.0 < self.memory_fraction <= 1.0:
            raise ConfigError(f"memory_fraction must lie in (0, 1], got {self.memory_fraction}")


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Who runs next, and how much of it at once."""

    max_running: int | None = None
    """Most requests that run at the same time; auto: 512 on a GPU of 64 GiB or more, else 256."""
    max_step_tokens: int | None = None
    """Token budget of one step, prompt chunks and decodes together; auto: 8192 on a GPU, 512 on a CPU."""
    chunk_size: int | None = None
    """Longest piece of one prompt computed in one step; auto: the token budget."""
    max_waiting: int = 4096
    """Most requests that wait; beyond it a request is refused with 429."""
    prefix_cache: bool = True
    """Keep the KV of finished prompts and share it with requests that begin alike."""
    prefix_eviction: PrefixEvictionName = "lru"
    """Which unused prefix is forgotten first: least recently used, least often used, or of lowest priority."""
    policy: PolicyName = "fcfs"
    """Order in which waiting requests are admitted."""
    estimator: EstimatorName = "past_future"
    """How many more tokens a request will need: past_future learns it, conservative takes all of max_tokens."""
    preemption: PreemptionName = "cheapest"
    """Who leaves when memory runs out: the request that is cheapest to compute again, or the newest."""
    overtaking: int = 16
    """How many requests may be admitted past a waiting one that does not fit, before nobody passes it."""
    admission_interval: int = 1
    """Steps between two looks at the waiting requests."""
    fixed_output_len: int = 256
    """Output length that the estimator "fixed" expects of every request."""
    watermark: float = 0.9
    """Share of the pool that the estimator "watermark" fills, counting only what is held now."""
    reserve: float = 0.03
    """Share of the pool that "past_future_sampled", "exponential" and "fixed" leave free."""
    history_window: int = 1000
    """Finished requests that the estimators remember."""
    eviction_target: float = 0.01
    """Preemptions per finished request that "past_future" steers to with its safety margin."""
    tpot_target: float | None = None
    """Seconds between tokens that prompt chunks must leave to decodes; no bound when omitted."""
    ttft_target: float | None = None
    """Seconds to the first token that the policy "deadline" assumes of requests that name none."""
    step_cost: str | None = None
    """JSON file with a measured step-cost model (docs/scheduling.md); fitted while serving when omitted."""
    ageing: float = 30.0
    """Seconds of waiting after which policies other than fcfs and vtc let a request go before its betters."""
    vtc_input_weight: float = 1.0
    """Service that the policy "vtc" counts for a prompt token."""
    vtc_output_weight: float = 2.0
    """Service that the policy "vtc" counts for a generated token."""
    tenant_weight: tuple[str, ...] = ()
    """NAME=WEIGHT, may be repeated: a tenant's share under the policy "vtc" (others: 1); it has metrics of its own."""

    @property
    def running_limit(self) -> int:
        """`max_running` as a number. Raises ConfigError while it is left to the device."""
        if self.max_running is None:
            raise ConfigError("max_running must be a number here: what it is by default depends on the device")
        return self.max_running

    @property
    def tenant_weights(self) -> dict[str, float]:
        """Weight of each named tenant. Raises ConfigError naming the entry that is wrong."""
        weights: dict[str, float] = {}
        for entry in self.tenant_weight:
            name, _, text = entry.rpartition("=")
            weight = _number(text)
            if not name or not 0.0 < weight < float("inf"):
                message = f"tenant_weight is NAME=WEIGHT with a positive number, got {entry!r}"
                raise ConfigError(message, param="tenant_weight")
            if name in weights:
                raise ConfigError(f"tenant_weight names {name!r} twice", param="tenant_weight")
            weights[name] = weight
        return weights

    def __post_init__(self) -> None:
        check_at_least_one(self, "max_running", "max_step_tokens", "chunk_size", "max_waiting", "fixed_output_len")
        check_at_least_one(self, "admission_interval", "history_window")
        _one_of("policy", self.policy, PolicyName)
        _one_of("estimator", self.estimator, EstimatorName)
        _one_of("preemption", self.preemption, PreemptionName)
        _one_of("prefix_eviction", self.prefix_eviction, PrefixEvictionName)
        if self.overtaking < 0:
            raise ConfigError(f"overtaking must not be negative, got {self.overtaking}", param="overtaking")
        if not 0.0 < self.watermark <= 1.0:
            raise ConfigError(f"watermark must lie in (0, 1], got {self.watermark}", param="watermark")
        for name in ("reserve", "eviction_target"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}", param=name)
        check_positive(self, "tpot_target", "ttft_target", "ageing", "vtc_input_weight", "vtc_output_weight")
        _ = self.tenant_weights


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The HTTP front door."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    frontends: int = 1
    """HTTP and tokenization processes that share the port."""
    api_key: tuple[str, ...] = ()
    """Keys of which a client must present one; open when omitted."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Largest request body."""
    upload_seconds: float = 60.0
    """How long a client may take to send the headers of a request, and then its body."""
    cors_origins: tuple[str, ...] = ()
    """Origins allowed by CORS; "*" for any."""
    drain_seconds: float = 30.0
    """After SIGTERM, how long running requests may take to finish."""
    start_seconds: float = 600.0
    """How long a worker may take to become ready."""
    root_path: str = ""
    """Path prefix added by a reverse proxy."""
    access_log: bool = False
    """Log every request."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        check_at_least_one(self, "frontends", "max_body_bytes")
        check_not_negative(self, "drain_seconds", "start_seconds")
        if "" in self.api_key:
            raise ConfigError("api_key is empty, which every request would match; leave it out to be open to all")
        check_positive(self, "upload_seconds")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            message = f"root_path must begin with a slash and not end with one, as in /api; got {self.root_path!r}"
            raise ConfigError(message, param="root_path")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything one server needs to know."""

    model: ModelSettings = field(default_factory=ModelSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    server: ServerSettings = field(default_factory=ServerSettings)


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _one_of(name: str, value: str, choices: Any) -> None:
    names = get_args(choices)
    if value not in names:
        raise ConfigError(f"{name} must be one of {', '.join(names)}, got {value!r}", param=name)
