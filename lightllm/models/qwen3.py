"""Qwen3 (dense): Llama's form with an RMSNorm on every query and key head before the rotation."""

from __future__ import annotations

from lightllm.models.config_reader import ConfigReader
from lightllm.models.decoder import DecoderSpec
from lightllm.models.llama import read_dimensions
from lightllm.models.qwen2 import MAX_POSITION, read_windows

HEAD_DIM = 128
"""What the absence of head_dim means."""


def read_spec(config: ConfigReader) -> DecoderSpec:
    """The published Qwen3 config."""
    bias = config.flag("attention_bias", False)
    dimensions = read_dimensions(config, head_dim=HEAD_DIM, max_position=MAX_POSITION)
    windows = read_windows(config)
    return DecoderSpec(**dimensions, qkv_bias=bias, output_bias=bias, head_norms=True, windows=windows)
