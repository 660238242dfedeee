"""Which directory or file a name means: a model (a directory, a hub name, the bundled demo), a tokenizer, a chat
template."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightllm.config.checks import read_text
from lightllm.errors import CheckpointError, ConfigError

DEMO = Path(__file__).parent.parent / "assets" / "demo"
_WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def find_model(name: str | None) -> Path:
    """The directory of a model. Raises ConfigError when there is none of that name and none can be fetched,
    CheckpointError for a directory that holds no model."""
    if name is None:
        return DEMO
    with _errors_naming("model", name):
        path = Path(name).expanduser()
        if path.is_dir():
            os.scandir(path).close()
            if not (path / "config.json").is_file():
                raise CheckpointError(f"{path} is no model directory: it has no config.json")
            return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ConfigError(f"{name} is neither a directory nor a hub name like owner/model", param="model")
    return _download(name)


def find_tokenizer(name: str | None, model: Path) -> Path:
    """The directory of the tokenizer: a directory of its own if one is named, else the model's."""
    if name is None:
        return model
    with _errors_naming("tokenizer", name):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise ConfigError(f"tokenizer {name} is no directory", param="tokenizer")
        os.scandir(path).close()
        return path.resolve()


def read_template(path: str) -> str:
    """The text of a chat template file. Raises ConfigError when it cannot be read."""
    return read_text(path, "chat template", "chat_template")


def model_name(name: str | None) -> str:
    """What the API calls a model when the user names nothing else."""
    if name is None:
        return "lightllm-demo"
    return name if not Path(name).expanduser().is_dir() else Path(name).expanduser().resolve().name


@contextmanager
def _errors_naming(what: str, name: str) -> Iterator[None]:
    """What may not be looked at, or cannot be a path, becomes a ConfigError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter for ~user if there is no such user
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{what} {name} cannot be read: {reason}", param=what) from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{name} is no directory here and cannot be fetched from the hub: {reason}") from error
