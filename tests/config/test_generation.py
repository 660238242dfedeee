"""What the makers of a model recommend."""

from __future__ import annotations

import json
from pathlib import Path

from lightllm.config.generation import read_generation_defaults


def test_greedy_decoding_keeps_the_repetition_penalty(tmp_path: Path) -> None:
    """As Transformers' greedy search applies it."""
    values = {"do_sample": False, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert read_generation_defaults(tmp_path).sampling == {"temperature": 0.0, "repetition_penalty": 1.1}
