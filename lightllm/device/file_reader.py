"""Parts of files into tensors on a device: read by several threads at once, each through pinned memory of its own.

    file --pread--> pinned piece --asynchronous copy--> tensor          (same dtype)
                                --asynchronous copy--> piece on the device --converted--> tensor

It holds `threads` x 2 pieces of host memory and a few of device memory, whatever the size of what is read. It knows
nothing of checkpoints.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE_BYTES = 4 << 20
"""Large beside what a copy costs to start, small beside a weight, so that all threads have something to read."""
THREADS = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's elements lie: in the file open as `fd`, from byte `offset` on, as `dtype`."""

    fd: int
    offset: int
    dtype: torch.dtype


class FileReader:
    """Reads tensors from files onto one device. Its calls come from one thread."""

    def __init__(self, device: torch.device, threads: int = THREADS, piece_bytes: int = PIECE_BYTES) -> None:
        self._device = device
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._piece_bytes = piece_bytes
        self._pool = ThreadPoolExecutor(threads, "file-reader")
        self._own = threading.local()

    def read(self, jobs: Sequence[tuple[StoredTensor, Tensor]]) -> None:
        """Fill each contiguous tensor with its stored elements, converted to its dtype.

        Returns when everything is read; on a GPU the values are there for what the stream does next. Raises OSError
        when a file cannot be read or ends too early.
        """
        pieces = [piece for stored, target in jobs for piece in self._pieces(stored, target.view(-1))]
        for future in [self._pool.submit(self._read_piece, *piece) for piece in pieces]:
            future.result()

    def close(self) -> None:
        """End the threads and give back their memory."""
        self._pool.shutdown(wait=True)
        self._own = threading.local()

    def _pieces(self, stored: StoredTensor, target: Tensor) -> list[tuple[StoredTensor, Tensor]]:
        size, most = stored.dtype.itemsize, self._piece_bytes // stored.dtype.itemsize
        return [
            (StoredTensor(stored.fd, stored.offset + first * size, stored.dtype), target[first : first + most])
            for first in range(0, len(target), most)
        ]

    def _read_piece(self, stored: StoredTensor, target: Tensor) -> None:
        buffers: _Buffers | None = getattr(self._own, "buffers", None)
        if buffers is None:
            buffers = self._own.buffers = _Buffers(self._piece_bytes, self._device)
        with torch.inference_mode(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
            host = buffers.next(len(target) * stored.dtype.itemsize)
            _read_fully(stored.fd, host.numpy().data, stored.offset)
            source = host.view(stored.dtype)
            if stored.dtype != target.dtype:
                source = source.to(self._device, non_blocking=True)  # else the processor would convert it
            target.copy_(source, non_blocking=True)
            buffers.mark_sent()


class _Buffers:
    """Two pieces of host memory, used in turn: one is filled while the other is on its way."""

    def __init__(self, size: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._hosts = [torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
        self._sent = [torch.cuda.Event() for _ in range(2)] if on_gpu else []
        self._turn = 0

    def next(self, size: int) -> Tensor:
        """A buffer of `size` bytes whose last contents have left."""
        self._turn = 1 - self._turn
        if self._sent:
            self._sent[self._turn].synchronize()
        return self._hosts[self._turn][:size]

    def mark_sent(self) -> None:
        """Copies from the buffer last given are in the stream."""
        if self._sent:
            self._sent[self._turn].record()


def _read_fully(fd: int, target: memoryview, offset: int) -> None:
    while len(target):
        count = os.preadv(fd, [target], offset)
        if count == 0:
            raise OSError(f"the file ends before byte {offset + len(target)}")
        target, offset = target[count:], offset + count
