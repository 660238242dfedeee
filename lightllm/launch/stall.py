"""Notices an engine that has work and takes no step. Reads its metric board; time is an argument."""

from __future__ import annotations

import math

from lightllm.metrics import Board, Metric, names

LONGEST_STEP_SECONDS = 60.0


class StallWatch:
    """The progress of one engine, as its board shows it."""

    def __init__(self, board: Board, limit_seconds: float = LONGEST_STEP_SECONDS) -> None:
        self.limit_seconds = limit_seconds
        self.reported = False
        """The others know that it stalled."""
        self._board = board
        self._steps = -1.0
        self._moved_at = 0.0

    def reset(self, now: float) -> None:
        """A new engine started."""
        self._steps, self._moved_at, self.reported = -1.0, now, False

    def stalled(self, has_unread: bool, now: float) -> bool:
        """Whether it had something to do for longer than the limit and took no step.

        Something to do: requests that run or wait, or messages that it has not read (`has_unread`).
        """
        steps = self._value(names.ENGINE_STEPS)
        has_work = has_unread or self._value(names.REQUESTS_RUNNING) > 0 or self._value(names.REQUESTS_WAITING) > 0
        if steps != self._steps or not has_work:
            self._steps, self._moved_at = steps, now
        return now - self._moved_at > self.limit_seconds

    def _value(self, metric: Metric) -> float:
        value = self._board.values[self._board.layout.offsets[metric.name][()]]
        return 0.0 if math.isnan(value) else value
