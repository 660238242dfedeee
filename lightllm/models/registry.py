"""From a config.json to a model: the file `models/<model_type>.py` is the whole registration."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module

import lightllm.models as package
from lightllm.errors import CheckpointError
from lightllm.models.config_reader import ConfigReader
from lightllm.models.decoder import DecoderSpec

_NO_MODEL = {"checkpoint", "config_reader", "decoder", "registry"}


def known_model_types() -> list[str]:
    """The model types that can be served."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _NO_MODEL)


def read_model_spec(config: ConfigReader, *, allow_unknown_keys: bool = False) -> DecoderSpec:
    """The model a config describes. An unknown model type, key or value raises CheckpointError."""
    model_type = config.model_type
    if model_type not in known_model_types():
        known = ", ".join(known_model_types())
        message = f"{config.origin}: model_type {model_type!r} is not supported; known: {known}"
        raise CheckpointError(message, param="model_type")
    read_spec: Callable[[ConfigReader], DecoderSpec] = import_module(f"lightllm.models.{model_type}").read_spec
    spec = read_spec(config)
    config.close(allow_unknown=allow_unknown_keys)
    return spec
