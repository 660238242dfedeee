"""Rotary angles: from a model's rope parameters to cos and sin of each position.

The variants are those the Llama family publishes: plain, linear, dynamic (NTK), yarn, llama3. Sources: RoFormer
(arXiv 2104.09864), position interpolation (2306.15595), YaRN (2309.00071); the exact constants are those of the
published configs. Angles are computed in float32 from float32 inverse frequencies, as the reference models do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightllm.errors import CheckpointError

_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "attn_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_OPTIONAL = {"attention_factor", "attn_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
_LARGEST = torch.finfo(torch.float32).max
_MOST_POSITIONS = 2**31 - 1
"""Positions are int32."""
_ALSO_ALLOWED = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """One rotary scheme. `max_position` is the length the unscaled model was trained for."""

    kind: str
    theta: float
    rotary_dim: int
    max_position: int
    values: Mapping[str, Any]

    @property
    def length_dependent(self) -> bool:
        """Whether angles depend on the length of the sequence, not on the position alone."""
        return self.kind == "dynamic"

    @property
    def stretched_positions(self) -> int:
        """Positions that the scaling was chosen for."""
        factor = float(self.values.get("factor") or 1.0)
        if self.kind not in ("linear", "dynamic", "yarn"):
            return self.max_position
        return min(int(self.max_position * factor), _MOST_POSITIONS)


def parse_rope(section: Mapping[str, Any] | None, theta: float, rotary_dim: int, max_position: int) -> RopeConfig:
    """Read `rope_scaling` or `rope_parameters` of a config.json. Unknown types, missing and unknown keys raise."""
    section = dict(section or {})
    kind = section.get("rope_type", section.get("type", "default"))
    if kind not in _KEYS:
        raise CheckpointError(f"rope type {kind!r} is not supported; known: {', '.join(_KEYS)}", param="rope_type")
    known = {*_KEYS[kind], *_ALSO_ALLOWED}
    for key in section:
        if key not in known:
            raise CheckpointError(f"unknown key {key!r} in the rope parameters of type {kind!r}", param=key)
    section = {key: value for key, value in section.items() if value is not None}
    _check_numbers(section)
    for key in _KEYS[kind]:
        if key not in section and key not in _OPTIONAL and key != "original_max_position_embeddings":
            raise CheckpointError(f"rope type {kind!r} needs the key {key!r}", param=key)
    original = section.get("original_max_position_embeddings")
    trained = original if original and kind in ("yarn", "llama3") else max_position
    theta = section.get("rope_theta") or theta
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta <= _LARGEST:
        raise CheckpointError(f"rope_theta must be a number above 0, got {theta!r}", param="rope_theta")
    if kind == "yarn" and theta <= 1:
        raise CheckpointError(f"rope_theta must be above 1 for yarn, got {theta!r}", param="rope_theta")
    return RopeConfig(kind, float(theta), rotary_dim, int(trained), section)


def _check_numbers(section: Mapping[str, Any]) -> None:
    for key in {key for keys in _KEYS.values() for key in keys}.intersection(section) - {"truncate"}:
        value = section[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
            raise CheckpointError(f"{key} must be a number of at least 0, got {value!r}", param=key)
        if key == "factor" and not value:
            raise CheckpointError("factor must be above 0, got 0", param=key)
        if key == "original_max_position_embeddings" and (value != int(value) or not value):
            raise CheckpointError(f"{key} must be an integer above 0, got {value!r}", param=key)


class RotaryAngles:
    """cos and sin [T, R/2] float32 for flat positions, multiplied by the scheme's attention factor."""

    def __init__(self, config: RopeConfig, max_len: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._scale = 1.0
        if config.length_dependent:
            self._table: Tensor | None = None
            return
        inverse, self._scale = inverse_frequencies(config)
        # [max_len, R]: cos and sin side by side, found by one lookup
        self._table = torch.cat(self._cos_sin(torch.arange(max_len, dtype=torch.float32)[:, None] * inverse), dim=1)

    def __call__(self, positions: Tensor, rope_lens: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] integers; rope_lens [T]: the sequence length each token was first computed at."""
        if self._table is not None:
            cos, sin = self._table.index_select(0, positions).chunk(2, dim=1)
            return cos, sin
        inverse = dynamic_frequencies(self._config, rope_lens)  # [tokens, R/2]
        return self._cos_sin(positions.float()[:, None] * inverse)

    def _cos_sin(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return cos.to(self._device), sin.to(self._device)


def inverse_frequencies(config: RopeConfig) -> tuple[Tensor, float]:
    """Inverse frequencies [R/2] and attention factor of a scheme that depends on positions alone."""
    plain = _plain(config.theta, config.rotary_dim)
    match config.kind:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / config.values["factor"], 1.0
        case "llama3":
            return _llama3(plain, config), 1.0
        case "yarn":
            return _yarn(plain, config), _yarn_attention_factor(config)
    raise AssertionError(f"rope type {config.kind} depends on the length")


def dynamic_frequencies(config: RopeConfig, lens: Tensor) -> Tensor:
    """Inverse frequencies [T, R/2] of dynamic NTK scaling for tokens computed at sequence lengths `lens` [T]."""
    factor, trained, dim = float(config.values["factor"]), config.max_position, config.rotary_dim
    lens = lens.double().clamp(min=trained)
    base = config.theta * ((factor * lens / trained) - (factor - 1)) ** (dim / (dim - 2))  # [tokens]
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=lens.device) / dim
    frequencies: Tensor = 1.0 / base[:, None] ** exponents
    return frequencies.float()


def _plain(theta: float, dim: int) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return torch.pow(torch.tensor(theta, dtype=torch.float32), exponents).reciprocal()


def _llama3(plain: Tensor, config: RopeConfig) -> Tensor:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended (Llama 3.1 configs)."""
    values = config.values
    low, high, factor = values["low_freq_factor"], values["high_freq_factor"], values["factor"]
    wavelength = 2 * math.pi / plain
    blend = (config.max_position / wavelength - low) / (high - low)
    blended = (1 - blend) * plain / factor + blend * plain
    stretched = torch.where(wavelength > config.max_position / low, plain / factor, plain)
    between = (wavelength >= config.max_position / high) & (wavelength <= config.max_position / low)
    return torch.where(between, blended, stretched)


def _yarn(plain: Tensor, config: RopeConfig) -> Tensor:
    """Interpolate slow dimensions, keep fast ones, ramp between (YaRN, section 3.2, "NTK-by-parts")."""
    values, dim = config.values, config.rotary_dim
    fast, slow = values.get("beta_fast") or 32, values.get("beta_slow") or 1

    def dimension_of(rotations: float) -> float:
        return dim * math.log(config.max_position / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    first, last = dimension_of(fast), dimension_of(slow)
    if values.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp = ((torch.arange(dim // 2).float() - first) / (last - first)).clamp(0, 1)
    return plain / float(values["factor"]) * ramp + plain * (1 - ramp)


def _yarn_attention_factor(config: RopeConfig) -> float:
    """What cos and sin are multiplied by (YaRN, section 3.4); DeepSeek's mscale pair overrides the default.

    `attn_factor` scales the default, as in YaRN's own code and vLLM; Transformers does not know it. The Qwen3 that
    DeepSeek R1 was distilled into is published with it, to make the whole 1.
    """
    values = config.values
    if values.get("attention_factor") is not None:
        return float(values["attention_factor"])

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(values["factor"]) + 1.0 if values["factor"] > 1 else 1.0

    if values.get("mscale") and values.get("mscale_all_dim"):
        return magnitude(values["mscale"]) / magnitude(values["mscale_all_dim"])
    return magnitude(1.0) * float(values.get("attn_factor", 1.0))
