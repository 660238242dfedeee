"""Reading weights: a directory of safetensors files, or random ones for a bare config. Strict both ways."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightllm.errors import CheckpointError

_LEFTOVERS = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "attention.masked_bias", "attn.masked_bias")
"""Buffers that old checkpoints carry and nobody needs."""


class SafetensorsSource:
    """The tensors of a model directory, converted to `dtype` on `device` as they are taken."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._directory = directory
        self._dtype, self._device = dtype, device
        self._files: dict[Path, Any] = {}
        self._homes = _find_tensors(directory)
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._homes

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._homes:
            raise CheckpointError(f"{self._directory} lacks the weight {name} {list(shape)}", param=name)
        self._taken.add(name)
        tensor: Tensor = self._open(self._homes[name]).get_tensor(name)
        if tuple(tensor.shape) != shape:
            message = f"weight {name} has shape {list(tensor.shape)}, the config calls for {list(shape)}"
            raise CheckpointError(f"{self._directory}: {message}", param=name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self._directory}: weight {name} holds {tensor.dtype}, no floats", param=name)
        return tensor.to(device=self._device, dtype=self._dtype)

    def close(self) -> None:
        """Raise CheckpointError if the checkpoint has weights that no layer took."""
        self._files.clear()
        left = sorted(n for n in self._homes if n not in self._taken and not n.endswith(_LEFTOVERS))
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise CheckpointError(f"{self._directory} has weights the model does not use: {shown}", param=left[0])

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
        return self._files[path]


class DummySource:
    """Random weights for any name and shape: normal with deviation 0.02, norms at one; equal names, equal values."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype, self._device, self._seed = dtype, device, seed

    def has(self, name: str) -> bool:
        return False

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1 and name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device).manual_seed(self._seed ^ zlib.crc32(name.encode()))
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        if math.prod(shape) == 0:
            return tensor
        return tensor.normal_(0.0, 0.02, generator=generator)

    def close(self) -> None:
        pass


def _find_tensors(directory: Path) -> dict[str, Path]:
    """Which file holds which tensor, from the index if there is one, else from the files themselves."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return _read_index(index)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} has no safetensors weights (for random ones use --dummy)")
    homes: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                homes.update(dict.fromkeys(file.keys(), path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return homes


def _read_index(index: Path) -> dict[str, Path]:
    try:
        entries: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        homes = {name: index.parent / file for name, file in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index} is not a readable weight index: {error!r}") from error
    for path in set(homes.values()):
        if path.resolve().parent != index.parent.resolve() or not path.is_file():
            raise CheckpointError(f"{index} names {path.name}, which is not beside it")
    return homes
