"""Reading weights: a directory of safetensors files, or random ones for a bare config. Strict both ways.

On a CPU a weight that has the right dtype is a view of the file; on a GPU it is read straight to the device by several
threads. What layers fuse is written into its place in the fused tensor, never concatenated.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightllm.config.json_text import parse_json
from lightllm.device.file_reader import FileReader, StoredTensor
from lightllm.errors import CheckpointError

_LEFTOVERS = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "attention.masked_bias", "attn.masked_bias")
"""Buffers that old checkpoints carry and nobody needs."""
_SMALL_BYTES = 1 << 20


class SafetensorsSource:
    """The tensors of a model directory, converted to `dtype` on `device` as they are taken."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._directory = directory
        self._dtype, self._device = dtype, device
        self._files: dict[Path, _File] = {}
        self._homes = _find_tensors(directory)
        self._untaken = set(self._homes)
        self._waiting = Counter(self._homes.values())
        self._reader = None if device.type == "cpu" else FileReader(device)
        self.num_bytes = 0
        """Bytes of the tensors given so far."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.take_stacked([(name, shape)])

    def take_stacked(self, parts: Sequence[tuple[str, tuple[int, ...]]]) -> Tensor:
        stored = [(name, self._view(name, shape)) for name, shape in parts]
        only = stored[0][1]
        if self._reader is None and len(parts) == 1 and only.nbytes > _SMALL_BYTES:
            tensor = only.to(self._dtype)
        else:  # a small view is not worth the mapping of the whole file that it would keep alive
            tensor = _empty_stack(parts, self._dtype, self._device)
            self._load(stored, tensor)
        for name, _ in parts:
            self._let_go(name)
        self.num_bytes += tensor.nbytes
        return tensor

    def has(self, name: str) -> bool:
        return name in self._homes

    def check_all_taken(self) -> None:
        """Raise CheckpointError if the checkpoint has weights that no layer took."""
        left = sorted(name for name in self._untaken if not name.endswith(_LEFTOVERS))
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise CheckpointError(f"{self._directory} has weights the model does not use: {shown}", param=left[0])

    def close(self) -> None:
        """Close the files and give back what reading took; weights that were taken stay."""
        if self._reader is not None:
            self._reader.close()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The weight as the file has it, not read yet."""
        if name not in self._homes:
            raise CheckpointError(f"{self._directory} lacks the weight {name} {list(shape)}", param=name)
        tensor = self._open(self._homes[name]).view(name)
        if tuple(tensor.shape) != shape:
            message = f"weight {name} has shape {list(tensor.shape)}, the config calls for {list(shape)}"
            raise CheckpointError(f"{self._directory}: {message}", param=name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self._directory}: weight {name} holds {tensor.dtype}, no floats", param=name)
        return tensor

    def _let_go(self, name: str) -> None:
        """Nobody needs `name` any more; a file of which that is true in whole is closed."""
        self._untaken.discard(name)
        path = self._homes[name]
        self._waiting[path] -= 1
        if not self._waiting[path] and path in self._files:
            self._files.pop(path).close()

    def _load(self, parts: Sequence[tuple[str, Tensor]], target: Tensor) -> None:
        """Write the stored weights into `target`, one after the other."""
        places = target.split([len(stored) for _, stored in parts])
        if self._reader is None:
            for (_, stored), place in zip(parts, places, strict=True):
                place.copy_(stored)
            return
        jobs = []
        for (name, stored), place in zip(parts, places, strict=True):
            file = self._open(self._homes[name])
            jobs.append((StoredTensor(file.fd, file.offsets[name], stored.dtype), place))
        try:
            self._reader.read(jobs)
        except OSError as error:
            names = " and ".join(name for name, _ in parts)
            raise CheckpointError(f"{self._directory}: cannot read {names}: {error}", param=parts[0][0]) from error

    def _open(self, path: Path) -> _File:
        if path not in self._files:
            try:
                self._files[path] = _File(path)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
        return self._files[path]


class _File:
    """A safetensors file: a handle that has checked its header, a descriptor, and where in it each tensor begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = _open_checked(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self.fd = os.open(path, os.O_RDONLY)
        self.offsets = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}

    def view(self, name: str) -> Tensor:
        """A tensor that maps its part of the file. Raises CheckpointError if an index promised what is not here."""
        try:
            tensor: Tensor = self._handle.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self._path} lacks the weight {name}", param=name) from error
        return tensor

    def close(self) -> None:
        os.close(self.fd)


def _open_checked(path: Path) -> Any:
    """A handle that has checked the header. Raises SafetensorError or OSError."""
    path.open("rb").close()  # safetensors calls every file missing that it may not read
    return safe_open(path, framework="pt", device="cpu")


class DummySource:
    """Random weights for any name and shape: normal with deviation 0.02, norms at one; equal names, equal values."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype, self._device, self._seed = dtype, device, seed
        self.num_bytes = 0

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.take_stacked([(name, shape)])

    def take_stacked(self, parts: Sequence[tuple[str, tuple[int, ...]]]) -> Tensor:
        target = _empty_stack(parts, self._dtype, self._device)
        for (name, shape), place in zip(parts, target.split([shape[0] for _, shape in parts]), strict=True):
            if len(shape) == 1 and name.endswith("norm.weight"):
                place.fill_(1.0)
            elif math.prod(shape):
                generator = torch.Generator(self._device).manual_seed(self._seed ^ zlib.crc32(name.encode()))
                place.normal_(0.0, 0.02, generator=generator)
        self.num_bytes += target.nbytes
        return target

    def has(self, name: str) -> bool:
        return False

    def check_all_taken(self) -> None:
        pass

    def close(self) -> None:
        pass


def _empty_stack(parts: Sequence[tuple[str, tuple[int, ...]]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for tensors that differ in their first dimension only, one after the other."""
    rows = sum(shape[0] for _, shape in parts)
    return torch.empty((rows, *parts[0][1][1:]), dtype=dtype, device=device)


def _find_tensors(directory: Path) -> dict[str, Path]:
    """Which file holds which tensor: `model.safetensors` all if there is one, as Transformers has it, else what the
    index says, else what the files themselves do."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        return _read_index(index)
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} has no safetensors weights (for random ones use --dummy)")
    homes: dict[str, Path] = {}
    for path in files:
        try:
            with _open_checked(path) as file:
                found = dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
        twice = next((name for name in found if name in homes), None)
        if twice is not None:
            raise CheckpointError(f"{directory}: {homes[twice].name} and {path.name} both hold {twice}")
        homes.update(found)
    return homes


def _read_index(index: Path) -> dict[str, Path]:
    try:
        entries: dict[str, str] = parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        homes = {name: index.parent / file for name, file in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index} is not a readable weight index: {error!r}") from error
    for file in set(entries.values()):  # which may be links to elsewhere, as in the hub's cache
        if Path(file).name != file or not (index.parent / file).is_file():
            raise CheckpointError(f"{index} names {file}, which is not beside it")
    return homes
