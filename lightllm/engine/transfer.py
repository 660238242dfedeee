"""Moving a step's small arrays between host and device: one copy each way, and no waiting in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int64 = NDArray[np.int64]


def upload(arrays: Sequence[Int64], device: torch.device) -> list[Tensor]:
    """Integer arrays on the device, in one asynchronous copy."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    packed = torch.from_numpy(np.concatenate(arrays)).pin_memory()
    return list(packed.to(device, non_blocking=True).split([len(array) for array in arrays]))


class Download:
    """Tensors on their way to the host. `wait` returns when all have arrived."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def add(self, tensor: Tensor) -> Tensor:
        """The host copy of `tensor`; its values are there after `wait`."""
        if self._event is None:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def seal(self) -> None:
        """Nothing is added any more."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()
