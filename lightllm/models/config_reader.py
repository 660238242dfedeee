"""Reading a config.json strictly: every key is asked for, known to be harmless, or an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightllm.config.json_text import is_finite_number, read_object
from lightllm.errors import CheckpointError

_HARMLESS_TEXT = """
    _attn_implementation _attn_implementation_autoset _name_or_path add_cross_attention architectures
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id hidden_dropout id2label initializer_range is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty
    resid_pdrop return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
    vocab_file
"""
_HARMLESS = frozenset(_HARMLESS_TEXT.split())
"""Keys that do not change what a causal decoder computes."""

_MISSING = object()
_LARGEST_INTEGER = 2**31 - 1
"""Sizes, positions and token ids are int32."""


class ConfigReader:
    """The keys of one config.json. `close` raises for keys that nobody asked for."""

    def __init__(self, values: Mapping[str, Any], origin: str = "config.json") -> None:
        self._values = dict(values)
        self._origin = origin
        self._taken: set[str] = set()

    @classmethod
    def load(cls, directory: Path) -> ConfigReader:
        """The config of a model directory. Raises CheckpointError if there is none or it is not a JSON object."""
        path = directory / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{directory} is no model directory: it has no config.json")
        return cls(read_object(path), str(path))

    @property
    def model_type(self) -> str:
        return self.text("model_type")

    @property
    def origin(self) -> str:
        return self._origin

    def peek(self, key: str) -> Any:
        """A value, or None, without taking the key."""
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Whether the config has the key, null included, without taking it."""
        return key in self._values

    def integer(self, key: str, default: int | object = _MISSING, *, minimum: int = 1) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer", value)
        if not minimum <= value <= _LARGEST_INTEGER:
            limit = f"at least {minimum}" if value < minimum else f"at most {_LARGEST_INTEGER}"
            raise CheckpointError(f"{self._origin}: {key} must be {limit}, got {_shown(value)}", param=key)
        return value

    def number(self, key: str, default: float | object = _MISSING) -> float:
        value = self._take(key, default)
        if not is_finite_number(value):
            raise self._wrong(key, "a finite number", value)
        return float(value)

    def flag(self, key: str, default: bool | object = _MISSING) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str | object = _MISSING) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def section(self, key: str) -> dict[str, Any] | None:
        """An optional object."""
        value = self._take(key, None)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self._take(key, None) is None else self.integer(key)

    def list_of_text(self, key: str) -> list[str] | None:
        value = self._take(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings", value)
        return value

    def refuse_unless(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Take a key whose only supported values are `allowed`; the first is what its absence means."""
        value = self._take(key, allowed[0])
        if value not in allowed:
            shown = " or ".join(repr(choice) for choice in allowed)
            raise CheckpointError(f"{self._origin}: {key} = {value!r} is not supported, only {shown}", param=key)

    def ignore(self, *keys: str) -> None:
        """Keys that this model's config has and that do not change what it computes."""
        self._taken.update(keys)

    def close(self, *, allow_unknown: bool = False) -> None:
        """Raise CheckpointError naming the keys that nobody took."""
        unknown = sorted(set(self._values) - self._taken - _HARMLESS)
        if unknown and not allow_unknown:
            raise CheckpointError(
                f"{self._origin} has unknown keys: {', '.join(unknown)}; if they do not matter, "
                "start with --allow-unknown-config-keys",
                param=unknown[0],
            )

    def _take(self, key: str, default: object) -> Any:
        self._taken.add(key)
        value = self._values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise CheckpointError(f"{self._origin} lacks the key {key}", param=key)
        return default

    def _wrong(self, key: str, wanted: str, value: object) -> CheckpointError:
        return CheckpointError(f"{self._origin}: {key} must be {wanted}, got {_shown(value)}", param=key)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
