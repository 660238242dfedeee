"""How long to wait before a worker is started again, and when to give up. Time is an argument."""

from __future__ import annotations

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
MOST_FAILURES = 10


class Backoff:
    """Counts failures in a row; one that comes after `HEALTHY_SECONDS` of health is the first again."""

    def __init__(self) -> None:
        self.failures = 0

    @property
    def exhausted(self) -> bool:
        """It failed so often in a row that another start is no use."""
        return self.failures >= MOST_FAILURES

    def failed(self, healthy_seconds: float) -> float:
        """Note a failure after `healthy_seconds` of being ready; seconds to wait before the next start."""
        if healthy_seconds >= HEALTHY_SECONDS:
            self.failures = 0
        self.failures += 1
        return float(min(FIRST_SECONDS * 2 ** (self.failures - 1), LONGEST_SECONDS))
