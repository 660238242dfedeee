from __future__ import annotations

from pathlib import Path

import pytest

from lightllm.text.tokenizer import Tokenizer

from . import toy_tokenizers


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of tokenizer -> a model directory with it."""
    root = tmp_path_factory.mktemp("tokenizers")
    build = toy_tokenizers.BUILDERS
    return {kind: toy_tokenizers.save(build[kind](), root / kind, **toy_tokenizers.NAMED[kind]) for kind in build}


@pytest.fixture(scope="session")
def tokenizers(directories: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.load(directory) for kind, directory in directories.items()}
