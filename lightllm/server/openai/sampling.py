"""From request fields to SamplingParams: the request's values, else the model's own defaults, else those of OpenAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightllm.errors import InvalidRequest, ModelNotFound
from lightllm.protocol.messages import Terms
from lightllm.protocol.sampling_params import GREEDY_TEMPERATURE, WHOLE_VOCABULARY, SamplingParams
from lightllm.server.openai.schemas import SamplingFields
from lightllm.workers.frontend import Frontend

DIRECT = (
    "n",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
"""Fields that mean the same here and there."""
TERMS = ("cache_salt", "priority", "tenant", "ttft_target", "tpot_target", "refuse_late", "share_prefix")
"""Fields of `Terms` that a client may set."""
MAX_PROMPT_ENTRIES = 1 << 22
LISTS = ("stop_token_ids", "bad_words", "allowed_token_ids")
INHERITED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields whose default a model's generation_config.json may set."""


def terms_of(fields: SamplingFields) -> Terms:
    """How the request wants to be served, as far as it says."""
    given = {name: getattr(fields, name) for name in TERMS}
    return Terms(**{name: value for name, value in given.items() if value is not None})


def sampling_params(
    fields: SamplingFields,
    defaults: Mapping[str, Any],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """The sampling parameters of a request; `defaults` are the model's. Raises InvalidRequest that names the field.

    Who asks for several choices and names no temperature wants them to differ: a model's default of 0 gives way to 1.
    """
    values = {name: defaults[name] for name in INHERITED if defaults.get(name) is not None}
    if (fields.n or 1) > 1 and values.get("temperature", 1.0) < GREEDY_TEMPERATURE:
        del values["temperature"]
    values |= {name: value for name in DIRECT if (value := getattr(fields, name)) is not None}
    values |= {name: tuple(value) for name in LISTS if (value := getattr(fields, name)) is not None}
    if fields.stop is not None:
        values["stop"] = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)
    params = SamplingParams(
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logit_bias=read_logit_bias(fields.logit_bias),
        **values,
    )
    if params.n > 1 and params.temperature < GREEDY_TEMPERATURE:
        message = f"n must be 1 when temperature is 0, got {params.n}: greedy choices would be equal"
        raise InvalidRequest(message, param="n")
    return params


def count_prompt_entries(params: SamplingParams, prompt_lens: Sequence[int], vocab_size: int) -> int:
    """Log-probabilities of prompt tokens that all choices together are given.

    Raises InvalidRequest if they would not fit an answer of reasonable size.
    """
    if params.prompt_logprobs is None:
        return 0
    wanted = vocab_size if params.prompt_logprobs == WHOLE_VOCABULARY else params.prompt_logprobs
    entries = wanted * sum(prompt_lens) * params.n
    if entries > MAX_PROMPT_ENTRIES:
        message = f"prompt_logprobs asks for {entries} entries in all, at most {MAX_PROMPT_ENTRIES} are given"
        raise InvalidRequest(message, param="prompt_logprobs")
    return entries


def check_stream(fields: SamplingFields) -> None:
    """Raise InvalidRequest for what only goes with a stream, or only without one."""
    if fields.prompt_logprobs is not None and fields.stream:
        raise InvalidRequest("prompt_logprobs cannot be streamed; set stream to false", param="prompt_logprobs")
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")


def check_model(frontend: Frontend, model: str | None) -> str:
    """The served name to answer with; a request without a model gets the first. Raises ModelNotFound."""
    names = frontend.model_names
    if model is None:
        return names[0]
    if model not in names:
        served = ", ".join(names)
        raise ModelNotFound(f"the model {model[:200]!r} is not served here; served: {served}", param="model")
    return model


def read_logit_bias(bias: Mapping[str, float] | None) -> dict[int, float] | None:
    """JSON keys are strings; here they are token ids again."""
    if not bias:
        return None
    try:
        by_id = {_token_id(key): value for key, value in bias.items()}
    except ValueError:
        wrong = next(key for key in bias if not (key.isascii() and key.isdecimal() and len(key) <= 10))
        raise InvalidRequest(f"logit_bias keys must be token ids, got {wrong[:80]!r}", param="logit_bias") from None
    if len(by_id) < len(bias):
        twice = next(key for key in bias if key != str(int(key)))
        raise InvalidRequest(f"logit_bias names a token id twice, once as {twice!r}", param="logit_bias")
    return by_id


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 10):
        raise ValueError(key)
    return int(key)
