"""The demo model's makers live in tools/, outside the package: put the repository's root on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tokenizers import Tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def assets() -> Path:
    return ROOT / "lightllm" / "assets"


@pytest.fixture(scope="session")
def demo(assets: Path) -> Path:
    return assets / "demo"


@pytest.fixture(scope="session")
def tokenizer(demo: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo / "tokenizer.json"))
