"""Survival curves of output lengths, one over all requests and one for each busy tenant.

A tenant with n ended requests of its own is told apart: its curve counts with weight n / (n + 50), that of all with
the rest. The sixteen tenants whose requests ended last have a curve.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from lightllm.scheduler.load import Load
from lightllm.scheduler.survival import LengthHistory, fit_survival

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_MOST_TENANTS = 16
_HALF_WEIGHT = 50
_REFITS = 32
"""A curve is fitted anew when its history has grown by a 32nd."""


class Curves:
    """P(length >= l) on bins of `resolution` tokens: row 0 of `table` [rows, bins] for all, the others for tenants."""

    def __init__(self, table: Float64, resolution: int, rows: dict[int, int]) -> None:
        self.num_tokens = table.shape[1] * resolution
        self._flat = table.ravel()
        self._num_bins = table.shape[1]
        self._resolution = resolution
        self._rows = rows

    def rows(self, tenants: Int64) -> Int64:
        """The row of each tenant."""
        if not self._rows:
            return np.zeros_like(tenants)
        return np.array([self._rows.get(tenant, 0) for tenant in tenants.tolist()], np.int64)

    def at(self, lengths: Int64, rows: Int64) -> Float64:
        """S at `lengths` [R, T], with the curve of row `rows` [R]."""
        bins = np.minimum(lengths // self._resolution, self._num_bins - 1)
        if self._rows:
            bins = bins + (rows * self._num_bins)[:, None]
        found: Float64 = self._flat[bins]
        return found

    def mean_remaining(self, generated: int, allowed: int, tenant: int) -> float:
        """Expected further tokens of a request that has `generated` and may have `allowed` more."""
        start = self._rows.get(tenant, 0) * self._num_bins
        first = min(generated // self._resolution, self._num_bins - 1)
        last = min((generated + allowed) // self._resolution + 1, self._num_bins)
        tail = self._flat[start + first : start + max(last, first + 1)]
        return min((float(tail.sum() / tail[0]) - 0.5) * self._resolution, float(allowed))


class LengthLearner:
    """Keeps the histories, and fits curves when enough has happened since (always, while little is known)."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._all = LengthHistory(window)
        self._tenants: OrderedDict[int, LengthHistory] = OrderedDict()
        self._longest = 1
        self._fitted_at = 0
        self._curves: Curves | None = None

    @property
    def num_seen(self) -> int:
        return self._all.num_seen

    def note_limit(self, limit: int) -> None:
        """A request may generate up to `limit` tokens."""
        if limit > self._longest:
            self._longest = limit
            self._curves = None

    def add(self, length: int, tenant: int, *, censored: bool) -> None:
        """A request ended after `length` tokens; censored: it might have gone on."""
        self._all.add(length, censored=censored)
        history = self._tenants.setdefault(tenant, LengthHistory(self._window))
        history.add(length, censored=censored)
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > _MOST_TENANTS:
            self._tenants.popitem(last=False)

    def curves(self, running: Load | None) -> Curves:
        """The curves as they stand; `running` requests count as censored."""
        news = self._all.num_seen - self._fitted_at
        if self._curves is None or (running is not None and news * _REFITS > len(self._all)):
            self._curves = self._fit(running)
            self._fitted_at = self._all.num_seen
        return self._curves

    def _fit(self, running: Load | None) -> Curves:
        none = np.empty(0, np.int64)
        common = fit_survival(self._all, none if running is None else running.generated, self._longest)
        tables, rows = [common.table], {}
        if len(self._tenants) > 1:
            for tenant, history in self._tenants.items():
                generated = none if running is None else running.generated[running.tenant == tenant]
                own = fit_survival(history, generated, self._longest)
                weight = len(history) / (len(history) + _HALF_WEIGHT)
                rows[tenant] = len(tables)
                tables.append(weight * own.table + (1.0 - weight) * common.table)
        return Curves(np.stack(tables), common.resolution, rows)
