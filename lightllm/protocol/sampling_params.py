"""How a request wants its tokens chosen. Every field is checked here, once, with the limit and the value named.

It knows the meaning and range of each field; it does not know a tokenizer or a model: what depends on those
(token ids beyond the vocabulary, lengths beyond the context) is checked by `check_for_model`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lightllm.errors import InvalidRequest

MAX_N = 128
MAX_TOKENS = 1 << 24
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 64
MAX_ALLOWED_TOKEN_IDS = 1 << 18
MAX_STOP_TOKEN_IDS = 256
MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 100
WHOLE_VOCABULARY = -1
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this are served as greedy decoding (division by them would overflow float32)."""
_FLAGS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "detokenize",
)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sampling parameters of one request; the defaults are those of the OpenAI API.

    `max_tokens=None` means: until the context is full. None for a list is an empty one, except that
    `allowed_token_ids=None` allows every token. `top_k` of -1 or 0 is off. `logprobs=k` returns the chosen
    token and the k likeliest of each step; `prompt_logprobs` likewise for the prompt, -1 for the whole vocabulary.
    Without `detokenize` only ids come back, no text, and stop strings are refused.
    Raises InvalidRequest when a value is out of range.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        self._normalise()
        self._check_lengths()
        self._check_shape_of_distribution()
        self._check_penalties()
        self._check_lists()
        self._check_logprobs()

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1

    def _normalise(self) -> None:
        if isinstance(self.stop, str):
            msgspec.structs.force_setattr(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
            value = getattr(self, name)
            if isinstance(value, list) or (value is None and name != "allowed_token_ids"):
                msgspec.structs.force_setattr(self, name, tuple(value or ()))
            elif value is not None and not isinstance(value, tuple):
                raise InvalidRequest(f"{name} must be a list, got {type(value).__name__}", param=name)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(f"{name} must be True or False, got {_shown(getattr(self, name))}", param=name)

    def _check_lengths(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 0, MAX_TOKENS)
        _integer("min_tokens", self.min_tokens, 0, MAX_TOKENS)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})"
            raise InvalidRequest(message, param="min_tokens")

    def _check_shape_of_distribution(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _integer("top_k", self.top_k, -1, 1 << 31)
        if self.seed is not None:
            _integer("seed", self.seed, -(1 << 63), (1 << 64) - 1)

    def _check_penalties(self) -> None:
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)

    def _check_lists(self) -> None:
        _strings("stop", self.stop, MAX_STOPS, MAX_STOP_CHARS)
        if self.stop and not self.detokenize:
            raise InvalidRequest("stop strings need detokenize=True: they are found in the text", param="stop")
        _strings("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_STOP_CHARS)
        _token_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise InvalidRequest("allowed_token_ids must not be empty", param="allowed_token_ids")
            _token_ids("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS)
        bias = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(bias, dict):
            message = f"logit_bias must be a dict of token ids and numbers, got {type(bias).__name__}"
            raise InvalidRequest(message, param="logit_bias")
        if len(bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(f"logit_bias has {len(bias)} entries, at most {MAX_LOGIT_BIAS}", param="logit_bias")
        for token_id, value in bias.items():
            _integer("logit_bias key", token_id, 0, (1 << 31) - 1)
            _number("logit_bias", value, -100.0, 100.0)

    def _check_logprobs(self) -> None:
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None and self.prompt_logprobs != WHOLE_VOCABULARY:
            _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_PROMPT_LOGPROBS)

    def check_for_model(self, vocab_size: int) -> None:
        """Raise InvalidRequest for a token id that the model does not have (`vocab_size` ids from 0)."""
        named = [
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("logit_bias", tuple(self.logit_bias or ())),
        ]
        for name, ids in named:
            check_token_ids(name, ids, vocab_size)


def check_token_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest unless every id lies in [0, vocab_size)."""
    if not ids:
        return
    worst = max(ids) if min(ids) >= 0 else min(ids)
    if not 0 <= worst < vocab_size:
        message = f"{name} has token id {worst}, but the vocabulary has ids 0 to {vocab_size - 1}"
        raise InvalidRequest(message, param=name)


def _integer(name: str, value: object, low: int, high: int) -> None:
    """`name` begins with the field's."""
    param = name.partition(" ")[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be an integer, got {_shown(value)}", param=param)
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, got {_shown(value)}", param=param)


def _number(name: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number, got {_shown(value)}", param=name)
    inside = (low < value if low_open else low <= value) and value <= high
    if not inside:
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}]"
        raise InvalidRequest(f"{name} must lie in {interval}, got {_shown(value)}", param=name)


def _strings(name: str, values: Sequence[object], most: int, most_chars: int) -> None:
    if len(values) > most:
        raise InvalidRequest(f"{name} has {len(values)} entries, at most {most}", param=name)
    for value in values:
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"{name} must hold non-empty strings, got {_shown(value)}", param=name)
        if len(value) > most_chars:
            raise InvalidRequest(f"{name} has a string of {len(value)} characters, at most {most_chars}", param=name)


def _token_ids(name: str, values: Sequence[int], most: int) -> None:
    if len(values) > most:
        raise InvalidRequest(f"{name} has {len(values)} entries, at most {most}", param=name)
    if set(map(type, values)) == {int} and min(values) >= 0 and max(values) < 1 << 31:
        return  # quick even for a whole vocabulary: the engine checks them once more
    for value in values:
        _integer(f"{name} entry", value, 0, (1 << 31) - 1)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
