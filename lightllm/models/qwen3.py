"""Qwen3 (dense): Llama's form with an RMSNorm on every query and key head before the rotation."""

from __future__ import annotations

from lightllm.models.config_reader import ConfigReader
from lightllm.models.decoder import DecoderSpec
from lightllm.models.llama import read_dimensions
from lightllm.models.qwen2 import read_windows


def read_spec(config: ConfigReader) -> DecoderSpec:
    """The published Qwen3 config."""
    bias = config.flag("attention_bias", False)
    windows = read_windows(config)
    return DecoderSpec(**read_dimensions(config), qkv_bias=bias, output_bias=bias, head_norms=True, windows=windows)
