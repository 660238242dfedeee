"""A quick look at a model directory, without torch: mistakes show in a fraction of a second, not after the start."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightllm.config.generation import read_generation_defaults
from lightllm.config.locate import find_model, find_tokenizer, read_template
from lightllm.config.settings import ModelSettings
from lightllm.errors import CheckpointError
from lightllm.models.config_reader import ConfigReader
from lightllm.text.chat import ChatTemplate
from lightllm.text.tokenizer import Tokenizer


def check_model(settings: ModelSettings) -> Path:
    """The model's directory, with a readable config of a known type, weights and a tokenizer.

    Raises ConfigError or CheckpointError naming what is wrong. What only the loader can see (keys, shapes) is left
    to the engine.
    """
    directory = find_model(settings.model)
    check_config(directory)
    if not settings.dummy and not any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory} has no safetensors weights (for random ones use --dummy)")
    tokenizer = Tokenizer.load(find_tokenizer(settings.tokenizer, directory))
    source = tokenizer.chat_templates if settings.chat_template is None else read_template(settings.chat_template)
    ChatTemplate(source, tokenizer.special_tokens)
    return directory


def check_config(directory: Path) -> None:
    """Raise CheckpointError unless config.json and generation_config.json can be read and the type is known."""
    config = ConfigReader.load(directory)
    model_type = config.model_type
    module = find_spec(f"lightllm.models.{model_type}") if model_type.isidentifier() else None
    # not imported, for that needs torch
    if module is None or module.origin is None or "def read_spec(" not in Path(module.origin).read_text():
        raise CheckpointError(f"{config.origin}: model_type {model_type!r} is not supported", param="model_type")
    read_generation_defaults(directory)
