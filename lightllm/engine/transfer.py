"""Moving a step's small arrays between host and device, with no waiting in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm.kernels.ops.contracts import Move
from lightllm.kernels.transfer import ALIGNMENT, Transfer

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

STEPS = 8
"""Downloads that may be open at once."""
BLOCK_BYTES = 1 << 17
"""Room for the ids and log-probabilities of twenty likeliest tokens of 512 requests."""


def upload(arrays: Sequence[Int32 | Int64], device: torch.device) -> list[Tensor]:
    """Integer arrays on the device, in one asynchronous copy."""
    transfer = Transfer(device)
    uploads = [transfer.add(array) for array in arrays]
    transfer.send()
    return [uploaded.tensor for uploaded in uploads]


class Download:
    """Tensors on their way to the host. `wait` returns when all have arrived; what `add` gave may be overwritten
    after the next `STEPS` - 1 downloads. On a CPU the tensors stay where they are."""

    __slots__ = ("_block", "_event", "_move", "_used")

    def __init__(self, block: Tensor | None, event: torch.cuda.Event | None, move: Move) -> None:
        self._block = block
        self._event = event
        self._move = move
        self._used = 0

    def add(self, tensor: Tensor) -> Tensor:
        """The host copy of `tensor`; its values are there after `wait`."""
        if self._block is None:
            return tensor
        end = self._used + tensor.nbytes
        if end > BLOCK_BYTES or tensor.nbytes % 4:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        host = self._block[self._used : end].view(tensor.dtype).view(tensor.shape)
        self._used = -(-end // ALIGNMENT) * ALIGNMENT
        self._move(tensor.contiguous(), host)
        return host

    def seal(self) -> None:
        """Nothing is added any more."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()


class Downloads:
    """Opens downloads to one host; their pinned memory and events are made once and used in turn."""

    def __init__(self, device: torch.device, move: Move) -> None:
        self._move = move
        self._slots: list[tuple[Tensor | None, torch.cuda.Event | None]] = [(None, None)]
        if device.type == "cuda":
            blocks = torch.empty(STEPS, BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
            self._slots = [(block, torch.cuda.Event()) for block in blocks]
        self._turn = 0

    def open(self) -> Download:
        self._turn = (self._turn + 1) % len(self._slots)
        return Download(*self._slots[self._turn], self._move)
