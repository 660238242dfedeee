"""Small host arrays on their way to the device together: one buffer and one asynchronous copy per batch.

    array a        array b   array c
    |xxxxxxxx......|xxxx....|xxxxxxxxxxxx....|     each begins at a multiple of ALIGNMENT bytes

The copy begins in pinned memory that is kept: taking some, or copying from memory that is not pinned, makes the host
wait until the device has nothing to do. It knows bytes and devices, not what the arrays mean.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16
"""Kernels are compiled apart for pointers that are aligned so and for those that are not."""
RING_BYTES = 16 << 20
LARGEST = 2 << 20
"""Bytes of a batch that goes through the ring; a larger one takes pinned memory of its own."""


class Uploaded:
    """An array that is, or soon will be, on the device: `tensor` has its shape and dtype once it was sent."""

    __slots__ = ("_tensor", "array")

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        assert self._tensor is not None, "read before Transfer.send"
        return self._tensor

    def arrive(self, tensor: Tensor) -> None:
        self._tensor = tensor


class Transfer:
    """Collects arrays, then sends them. An array belongs to the transfer from `add` on: nobody may write to it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._uploads: list[Uploaded] = []

    def add(self, array: NDArray[Any]) -> Uploaded:
        """Queue an array of any shape and of a dtype that torch has, too."""
        upload = Uploaded(np.ascontiguousarray(array))
        self._uploads.append(upload)
        return upload

    def send(self) -> None:
        """Start the copy of everything added; the host does not wait. On a CPU the arrays themselves are shared."""
        if self._device.type == "cpu":
            for upload in self._uploads:
                upload.arrive(torch.from_numpy(upload.array))
        elif self._uploads:
            self.send_through(_ring(self._device))
        self._uploads = []

    def send_through(self, ring: PinnedRing) -> None:
        """Start the copy of everything added, packed into one."""
        sizes = [-(-upload.array.nbytes // ALIGNMENT) * ALIGNMENT for upload in self._uploads]
        begins = np.cumsum([0, *sizes]).tolist()

        def fill(host: NDArray[np.uint8]) -> None:
            for upload, begin in zip(self._uploads, begins, strict=False):
                host[begin : begin + upload.array.nbytes] = upload.array.reshape(-1).view(np.uint8)

        device = ring.send(begins[-1], fill)
        for upload, begin in zip(self._uploads, begins, strict=False):
            part = device[begin : begin + upload.array.nbytes]
            upload.arrive(part.view(_torch_dtype(upload.array)).view(upload.array.shape))


class PinnedRing:
    """Pinned memory that batches take in turn. What the device has not read yet is not given out again: by then the
    ring has gone around, so that the host hardly ever waits.

        |.......bbbbbbbbccccccc......|      b, c: sent, each with an event that says when it was read
    """

    def __init__(self, device: torch.device, memory: Tensor) -> None:
        """memory: pinned bytes, several times `LARGEST`."""
        self._device = device
        self._memory = memory
        self._next = 0
        self._sent: deque[tuple[int, int, torch.cuda.Event]] = deque()
        self._lock = threading.Lock()

    def send(self, size: int, fill: Callable[[NDArray[np.uint8]], None]) -> Tensor:
        """Let `fill` write so many bytes, and start their copy. Returns where they will be on the device.

        The copy is torch's and no kernel of ours: it is made while kernels are compiled and not run, too.
        """
        if size > LARGEST:
            own = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            fill(own.numpy())
            return own.to(self._device, non_blocking=True)  # torch keeps the pinned memory until the copy is made
        with self._lock:  # engines of one process share the ring
            begin = self._claim(size)
            host = self._memory[begin : begin + size]
            fill(host.numpy())
            target = torch.empty(size, dtype=torch.uint8, device=self._device)
            target.copy_(host, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._sent.append((begin, begin + size, event))
        return target

    def _claim(self, size: int) -> int:
        """Where the next `size` bytes begin, the device having read what was there."""
        begin = self._next if self._next + size <= len(self._memory) else 0
        end = self._next = begin + size
        while self._sent and self._sent[0][2].query():
            self._sent.popleft()
        while any(first < end and begin < last for first, last, _ in self._sent):
            self._sent.popleft()[2].synchronize()
        return begin


@cache
def _ring(device: torch.device) -> PinnedRing:
    return PinnedRing(device, torch.empty(RING_BYTES, dtype=torch.uint8, pin_memory=True))


def _torch_dtype(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
