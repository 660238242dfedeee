"""The simulated engine: takes a plan, says how long it lasts and what was sampled.

It generates filler tokens and, where a job's output is as long as it is to be, the end-of-text token. The scheduler
learns of the end as it would from a model; nothing tells it before.
"""

from __future__ import annotations

import numpy as np

from lightllm.protocol.plan import StepPlan, StepResult
from lightllm.scheduler.cost import StepCost, shape_of

END = 0
FILLER = 1


class Machine:
    """`cost` gives seconds per step; `noise` is the standard deviation of a log-normal factor on them."""

    def __init__(self, cost: StepCost, num_rows: int, *, noise: float = 0.0, seed: int = 0) -> None:
        self._cost = cost
        self._noise = noise
        self._random = np.random.default_rng([seed, 4])
        self._end_of_row = np.zeros(num_rows, np.int64)
        self.total_len: dict[int, int] = {}
        """Prompt and output tokens of each request to come, by its seed."""

    def run(self, plan: StepPlan) -> StepResult:
        """The result of a plan, with its duration in `seconds`."""
        for opened in plan.opened:
            self._end_of_row[opened.row] = self.total_len[opened.seed]
        position = (plan.starts + plan.lens)[plan.sampled]
        ends = position + 1 >= self._end_of_row[plan.rows[plan.sampled]]
        token_ids = np.where(ends, END, FILLER).astype(np.int32)
        seconds = self._cost.seconds(shape_of(plan))
        if self._noise:
            seconds *= float(np.exp(self._noise * self._random.standard_normal()))
        return StepResult(plan.step, token_ids, np.ones(len(token_ids), np.int32), seconds=seconds)
