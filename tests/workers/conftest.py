"""Tokenizers small enough to train on the spot."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lightllm.text.tokenizer import Tokenizer

TOYS = Path(__file__).parents[1] / "text" / "toy_tokenizers.py"


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Kind of decoder -> a tokenizer of that kind."""
    spec = importlib.util.spec_from_file_location("toy_tokenizers", TOYS)
    assert spec is not None and spec.loader is not None
    toys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    root = tmp_path_factory.mktemp("tokenizers")
    kinds = ("byte_level", "sentence_piece")
    return {k: Tokenizer.load(toys.save(toys.BUILDERS[k](), root / k, **toys.NAMED[k])) for k in kinds}
