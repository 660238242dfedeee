"""The seam between layers and checkpoints: a layer takes its tensors by name and shape, nothing else.

Loading is strict both ways: a missing or mis-shaped tensor raises when it is taken, and a tensor nobody took raises
at the end. A layer that renames, fuses or transposes does so where it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class WeightSource(Protocol):
    """Tensors of one checkpoint, on the serving device and in the serving dtype."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name`. Raises CheckpointError if it is missing or of another shape (both are named)."""
        ...

    def take_stacked(self, parts: Sequence[tuple[str, tuple[int, ...]]]) -> Tensor:
        """Tensors (name, shape) as one, in order along the first dimension; each is read into its place.

        Raises what `take` raises.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether the checkpoint has `name`; random weights have only what is taken."""
        ...
