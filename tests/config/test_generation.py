"""What the makers of a model recommend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightllm.config.generation import read_generation_defaults
from lightllm.errors import CheckpointError


def test_greedy_decoding_keeps_the_repetition_penalty(tmp_path: Path) -> None:
    """As Transformers' greedy search applies it."""
    values = {"do_sample": False, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert read_generation_defaults(tmp_path).sampling == {"temperature": 0.0, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"top_k": Infinity}', '{"temperature": NaN}', '{"top_p": 1%s}' % ("0" * 400)]
)
def test_what_no_maker_means_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read_generation_defaults(tmp_path)
