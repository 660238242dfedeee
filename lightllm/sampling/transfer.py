"""Small host arrays on their way to the device together: one pinned buffer and one asynchronous copy per batch.

    array a        array b   array c
    |xxxxxxxx......|xxxx....|xxxxxxxxxxxx....|     each begins at a multiple of ALIGNMENT bytes

It knows bytes and devices, not what the arrays mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16
"""Kernels are compiled apart for pointers that are aligned so and for those that are not."""


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
            self.send_packed(pinned=True)
        self._uploads = []

    def send_packed(self, *, pinned: bool) -> None:
        """Send through one buffer of bytes. Pinned memory is reused by torch only when the copy has been made."""
        sizes = [-(-upload.array.nbytes // ALIGNMENT) * ALIGNMENT for upload in self._uploads]
        staging = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)  # [bytes]
        host = staging.numpy()
        begins = np.cumsum([0, *sizes])
        for upload, begin in zip(self._uploads, begins, strict=False):
            host[begin : begin + upload.array.nbytes] = upload.array.reshape(-1).view(np.uint8)
        device = staging.to(self._device, non_blocking=True)
        for upload, begin in zip(self._uploads, begins, strict=False):
            part = device[begin : begin + upload.array.nbytes]
            upload.arrive(part.view(_torch_dtype(upload.array)).view(upload.array.shape))


def _torch_dtype(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
