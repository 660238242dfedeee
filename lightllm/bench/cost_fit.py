"""The step-cost model that best explains the steps of a run: what `lightllm simulate` computes with.

Least squares over relative errors, so that a decode step of 5 ms counts as much as a prompt step of 500 ms, with no
coefficient below zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightllm.bench.pipeline import Step
from lightllm.scheduler.cost import StepCost

Float64 = NDArray[np.float64]
FEWEST_STEPS = 8


def fit_step_cost(steps: Sequence[Step]) -> StepCost | None:
    """The coefficients, or None when there are too few steps to tell. A step of 0 seconds is one that held up something
    that is done only once."""
    steps = [step for step in steps if step.seconds > 0]
    if len(steps) < FEWEST_STEPS:
        return None
    features = np.array([(1.0, *step.shape) for step in steps])
    seconds = np.array([step.seconds for step in steps])
    scale = np.maximum(features.max(axis=0), 1e-12)
    weighted = features / scale / seconds[:, None]
    return StepCost(*(float(value) for value in non_negative_solution(weighted, np.ones(len(steps))) / scale))


def relative_error(cost: StepCost, steps: Sequence[Step]) -> float:
    """The median of |predicted - measured| / measured."""
    errors = [abs(cost.seconds(step.shape) - step.seconds) / step.seconds for step in steps if step.seconds > 0]
    return float(np.median(errors))


def non_negative_solution(matrix: Float64, target: Float64) -> Float64:
    """Least squares without negative coefficients: the most negative one is dropped until none is left."""
    active = list(range(matrix.shape[1]))
    values = np.zeros(matrix.shape[1])
    while active:
        solved = np.linalg.lstsq(matrix[:, active], target, rcond=None)[0]
        if solved.min() >= 0.0:
            values[active] = solved
            break
        active.pop(int(solved.argmin()))
    return values
