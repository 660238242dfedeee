"""From sampling flags to SamplingParams: flags first, then what the model's makers recommend, then the defaults."""

from __future__ import annotations

from pathlib import Path

from lightllm.cli.flags import SamplingFlags
from lightllm.config.generation import read_generation_defaults
from lightllm.protocol.sampling_params import SamplingParams


def sampling_params(flags: SamplingFlags, directory: Path) -> SamplingParams:
    """Raises InvalidRequest for a value out of range, CheckpointError for an unreadable generation_config.json."""
    recommended = read_generation_defaults(directory).sampling
    if "top_k" in recommended:
        recommended = recommended | {"top_k": int(recommended["top_k"])}
    return SamplingParams(**{"max_tokens": None, **recommended, **flags.given()})
