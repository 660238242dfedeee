"""Qwen1.5, Qwen2 and Qwen2.5: Llama's form with biases on QKV and, if configured, sliding windows in late layers."""

from __future__ import annotations

from lightllm.errors import CheckpointError
from lightllm.models.config_reader import ConfigReader
from lightllm.models.decoder import DecoderSpec
from lightllm.models.llama import read_dimensions

MAX_POSITION, WINDOW, FULL_LAYERS = 32768, 4096, 28
"""What the absence of max_position_embeddings, sliding_window and max_window_layers means in configs of this family."""


def read_spec(config: ConfigReader) -> DecoderSpec:
    """The published Qwen2 config."""
    config.refuse_unless("use_mrope", (False,))
    return DecoderSpec(
        **read_dimensions(config, max_position=MAX_POSITION), qkv_bias=True, windows=read_windows(config)
    )


def read_windows(config: ConfigReader) -> tuple[int | None, ...]:
    """Each layer's sliding window: from `layer_types`, else layers from `max_window_layers` on, if in use."""
    num_layers = config.integer("num_hidden_layers")
    window = config.optional_integer("sliding_window") if config.has("sliding_window") else WINDOW
    in_use = config.flag("use_sliding_window", False)
    first = config.integer("max_window_layers", FULL_LAYERS, minimum=0)
    kinds = config.list_of_text("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if in_use and layer >= first else "full_attention" for layer in range(num_layers)]
    if len(kinds) != num_layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        message = f"layer_types must name full_attention or sliding_attention for each of {num_layers} layers"
        raise CheckpointError(f"{config.origin}: {message}", param="layer_types")
    return tuple(window if kind == "sliding_attention" and in_use else None for kind in kinds)
