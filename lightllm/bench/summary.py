"""Percentiles of a list of durations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and percentiles of `count` values, in their unit; all zero without values."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        if not len(values):
            return cls()
        array = np.asarray(values, np.float64)
        p50, p90, p99 = (float(value) for value in np.percentile(array, (50, 90, 99)))
        return cls(len(array), float(array.mean()), p50, p90, p99, float(array.max()))
