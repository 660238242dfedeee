"""Parts of files arrive whole, in the dtype asked for, whatever the size of the pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightllm.device.file_reader import FileReader, StoredTensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[StoredTensor, torch.Tensor]]:
    """A file with 11 odd bytes before 1 003 float32 values."""
    values = torch.randn(1003, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "values"
    path.write_bytes(b"x" * 11 + values.numpy().tobytes())
    fd = os.open(path, os.O_RDONLY)
    yield StoredTensor(fd, 11, torch.float32), values
    os.close(fd)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("piece_bytes", [4, 28, 1 << 10, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_arrive(
    stored: tuple[StoredTensor, torch.Tensor], device: str, piece_bytes: int, dtype: torch.dtype
) -> None:
    place, values = stored
    reader = FileReader(torch.device(device), threads=3, piece_bytes=piece_bytes)
    target = torch.zeros(2, 1003, dtype=dtype, device=device)
    reader.read([(place, target[1]), (place, target[0])])
    reader.close()
    assert torch.equal(target.cpu(), values.to(dtype).expand(2, -1))


def test_a_file_that_ends_early(stored: tuple[StoredTensor, torch.Tensor]) -> None:
    place, _ = stored
    reader = FileReader(torch.device("cpu"), piece_bytes=256)
    with pytest.raises(OSError, match="ends before byte"):
        reader.read([(place, torch.zeros(1004))])
    target = torch.zeros(3)
    reader.read([(place, target)])  # and goes on with the next
    assert target.any()
    reader.close()
