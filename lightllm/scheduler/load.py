"""What admission looks at: how much each request holds and may still want, in arrays.

The estimators and the peak work on `Load` alone; they know neither requests nor memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Load:
    """R requests, in tokens.

    held       [R]  slots that are theirs alone, with the known tokens still to be computed
    generated  [R]  output tokens so far
    allowed    [R]  output tokens that their limit still permits
    delay      [R]  steps until their next output token, beyond the coming one (prompt chunks to come)
    tenant     [R]  number of the tenant
    """

    held: Int64
    generated: Int64
    allowed: Int64
    delay: Int64
    tenant: Int64

    def __len__(self) -> int:
        return len(self.held)

    @property
    def most(self) -> int:
        """What no peak can pass: all that they hold once each has used all of its limit."""
        return int(self.held.sum() + self.allowed.sum())

    def plus(self, other: Load) -> Load:
        """Both, one after the other."""
        return Load(
            np.concatenate([self.held, other.held]),
            np.concatenate([self.generated, other.generated]),
            np.concatenate([self.allowed, other.allowed]),
            np.concatenate([self.delay, other.delay]),
            np.concatenate([self.tenant, other.tenant]),
        )

    @staticmethod
    def of_one(held: int, generated: int, allowed: int, delay: int, tenant: int) -> Load:
        return Load(*(np.array([value], np.int64) for value in (held, generated, allowed, delay, tenant)))
