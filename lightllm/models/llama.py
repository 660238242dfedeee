"""Llama 1, 2, 3 and what was published in their form (Yi, Vicuna, many fine-tunes)."""

from __future__ import annotations

from typing import Any

from lightllm.errors import CheckpointError
from lightllm.layers.rotary import RopeConfig, parse_rope
from lightllm.models.config_reader import ConfigReader
from lightllm.models.decoder import DecoderSpec

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_spec(config: ConfigReader) -> DecoderSpec:
    """The published Llama config."""
    attention_bias = config.flag("attention_bias", False)
    return DecoderSpec(
        **read_dimensions(config),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        ffn_bias=config.flag("mlp_bias", False),
    )


def read_dimensions(config: ConfigReader, *, head_dim: int | None = None, max_position: int = 2048) -> dict[str, Any]:
    """The keys that all families in Llama's form share; `head_dim` and `max_position` are what their absence means."""
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        message = f"num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads ({num_kv_heads})"
        raise CheckpointError(f"{config.origin}: {message}", param="num_key_value_heads")
    head_dim = config.integer("head_dim", head_dim or hidden // num_heads)
    activation = config.text("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise CheckpointError(f"{config.origin}: hidden_act {activation!r} is not one of {known}", param="hidden_act")
    config.refuse_unless("rope_interleaved", (False,))
    config.ignore("is_llama_config")
    max_position = config.integer("max_position_embeddings", config.integer("max_sequence_length", max_position))
    return {
        "hidden_size": hidden,
        "num_layers": config.integer("num_hidden_layers"),
        "num_q_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "ffn_size": config.integer("intermediate_size"),
        "vocab_size": config.integer("vocab_size"),
        "max_position": max_position,
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "rope": read_rope(config, head_dim, max_position),
        "activation": _ACTIVATIONS[activation],
        "tied_head": config.flag("tie_word_embeddings", False),
    }


def read_rope(config: ConfigReader, head_dim: int, max_position: int) -> RopeConfig:
    """`rope_parameters` (newer configs) or `rope_scaling` and `rope_theta` (older ones); where both are, somebody added
    the older one by hand, and Transformers takes that."""
    newer, older = config.section("rope_parameters") or {}, config.section("rope_scaling")
    newer = {key: value for key, value in newer.items() if value is not None}
    fraction = newer.get("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        message = f"{config.origin}: partial_rotary_factor must be a number above 0 and at most 1, got {fraction!r}"
        raise CheckpointError(message, param="partial_rotary_factor")
    rotary_dim = int(head_dim * fraction)
    if rotary_dim % 2 or not rotary_dim:
        message = f"the rotated part of a head must be even and at least 2, partial_rotary_factor {fraction}"
        raise CheckpointError(f"{config.origin}: {message} makes it {rotary_dim}", param="partial_rotary_factor")
    theta = config.number("rope_theta", 10000.0) if config.has("rope_theta") else newer.get("rope_theta", 10000.0)
    return parse_rope(older or newer, theta, rotary_dim, max_position)
