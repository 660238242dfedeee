"""Which kernel computes a matrix product of a given shape: a table measured on this kind of device, else a rule.

The tables are `lightllm/kernels/tuned/<device>.json`, made by `lightllm bench kernels --tune`:

    {"linear": {"<N>x<K>": {"<most tokens>": ["vector", ROWS, BLOCK_K, warps]
                                           | ["tile", BLOCK_N, BLOCK_K, SPLIT, stages, warps]
                                           | ["persistent", BAND]
                                           | ["cublaslt", the numbers of an `Algorithm`]
                                           | ["cublas"]}},
     "cublaslt": <the version those numbers belong to>}

With another version of cuBLASLt such an entry means cuBLAS, which then makes its own choice.
"""

from __future__ import annotations

import json
import re
from dataclasses import astuple, dataclass
from functools import cache
from importlib import resources

import torch

from lightllm.kernels import cublaslt
from lightllm.kernels.cublaslt import Algorithm
from lightllm.kernels.triton.launch import next_power_of_2

MOST_VECTOR_TOKENS = 4
MOST_TILE_TOKENS = 128
FEWEST_PERSISTENT_TOKENS = 1024
MOST_TOKENS = 1 << 20
"""More than any step has."""


@dataclass(frozen=True, slots=True)
class Vector:
    """Rows of the weight per program, and columns at a time."""

    rows: int
    block_k: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Tile:
    """Block of the weight, programs that share a block's K, pipeline stages."""

    block_n: int
    block_k: int
    split: int
    num_stages: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Persistent:
    """Many tokens, by tiles of which rows of `band` times 64 tokens are taken together. Where it does not serve, it
    means cuBLAS: added to a residual, with a bias, with few tiles and no gate, on another device."""

    band: int


Choice = Vector | Tile | Algorithm | Persistent | None
"""None: cuBLAS, and what it chooses."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The choice for every number of tokens, as (most tokens, choice), ascending; cuBLAS above the last."""

    steps: tuple[tuple[int, Choice], ...]
    reason: str

    def at(self, num_tokens: int) -> Choice:
        for most, choice in self.steps:
            if num_tokens <= most:
                return choice
        return None


def choices_for(num_rows: int, size: int, dtype: torch.dtype, device_name: str, *, hopper: bool) -> Choices:
    """What to use for a weight [num_rows, size]."""
    if dtype not in (torch.bfloat16, torch.float16):
        return Choices((), f"cuBLAS: not measured for {dtype}")
    tuned = tuned_table(device_name).get(f"{num_rows}x{size}")
    if tuned is not None:
        return Choices(tuned, f"measured on {device_name}")
    steps: tuple[tuple[int, Choice], ...] = ((MOST_VECTOR_TOKENS // 2, by_rule(size)),)
    if hopper:
        steps += ((FEWEST_PERSISTENT_TOKENS - 1, None), (MOST_TOKENS, Persistent(band=32)))
    return Choices(steps, "by rule: shape not measured")


def by_rule(size: int) -> Vector:
    """A vector kernel in the manner of those measured best: programs that end soon."""
    block_k = min(2048, next_power_of_2(size))
    return Vector(rows=2, block_k=block_k, num_warps=max(2, 2 * block_k // 1024))


@cache
def tuned_table(device_name: str) -> dict[str, tuple[tuple[int, Choice], ...]]:
    """The measured choices of this device; empty when it was never measured."""
    file = resources.files("lightllm.kernels").joinpath("tuned", table_name(device_name))
    if not file.is_file():
        return {}
    content = json.loads(file.read_text())
    foreign = content.get("cublaslt") != cublaslt.version()
    return {
        shape: tuple(
            (int(most), None if foreign and entry[0] == "cublaslt" else parse_choice(entry))
            for most, entry in sorted(steps.items(), key=lambda s: int(s[0]))
        )
        for shape, steps in content["linear"].items()
    }


def table_name(device_name: str) -> str:
    """The file name for a device: `NVIDIA H200` -> `nvidia_h200.json`."""
    return re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_") + ".json"


def parse_choice(entry: list[str | int]) -> Choice:
    kind, *numbers = entry
    values = [int(number) for number in numbers]
    match kind:
        case "vector":
            return Vector(*values)
        case "tile":
            return Tile(*values)
        case "cublaslt":
            return Algorithm(*values)
        case "persistent":
            return Persistent(*values)
        case "cublas":
            return None
    raise ValueError(f"unknown kernel {kind!r} in a tuned table: expected vector, tile, persistent, cublaslt or cublas")


def write_choice(choice: Choice) -> list[str | int]:
    """The inverse of `parse_choice`."""
    if choice is None:
        return ["cublas"]
    if isinstance(choice, Vector):
        return ["vector", *astuple(choice)]
    if isinstance(choice, Tile):
        return ["tile", *astuple(choice)]
    if isinstance(choice, Persistent):
        return ["persistent", *astuple(choice)]
    return ["cublaslt", *astuple(choice)]
