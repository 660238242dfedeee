"""What a step costs, in seconds: a linear model of its shape, read from a file or fitted while serving.

    seconds = base + per_token * tokens + per_context * context + per_pair * pairs

tokens   tokens computed in the step, prompt chunks and decodes
context  KV slots read: the sum over sequences of the tokens before the first computed one
pairs    query-key pairs inside prompt chunks: the sum over chunks of len * (start + len / 2)

File format (JSON, written by `lightllm bench`, read by the setting `step_cost` and by `lightllm simulate`):

    {"format": "lightllm-step-cost", "version": 1, "model": "...", "machine": "...",
     "seconds": {"base": 0.012, "per_token": 8e-5, "per_context": 3.2e-7, "per_pair": 0.0}}

`model` and `machine` are for people; every number is at least zero.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightllm.config.checks import writing
from lightllm.config.json_text import parse_json
from lightllm.errors import ConfigError
from lightllm.protocol.plan import StepPlan

FORMAT = "lightllm-step-cost"
VERSION = 1
_NAMES = ("base", "per_token", "per_context", "per_pair")


class StepShape(NamedTuple):
    """What the cost of a step depends on (see the head of this module)."""

    tokens: int
    context: int
    pairs: float = 0.0


def shape_of(plan: StepPlan) -> StepShape:
    """The shape of a plan."""
    lens = plan.lens.astype(np.int64)
    prompts = lens > 1
    pairs = (lens * (plan.starts + lens / 2))[prompts].sum() if prompts.any() else 0.0
    return StepShape(plan.num_tokens, int(plan.starts.sum(dtype=np.int64)), float(pairs))


@dataclass(frozen=True, slots=True)
class StepCost:
    """Coefficients in seconds."""

    base: float
    per_token: float
    per_context: float = 0.0
    per_pair: float = 0.0

    def seconds(self, shape: StepShape) -> float:
        return (
            self.base + self.per_token * shape.tokens + self.per_context * shape.context + self.per_pair * shape.pairs
        )

    def save(self, path: str | Path, *, model: str = "", machine: str = "") -> None:
        """Write the file format above. Raises ConfigError when the file cannot be written."""
        content = {"format": FORMAT, "version": VERSION, "model": model, "machine": machine, "seconds": asdict(self)}
        with writing(path, "cost_model"):
            Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_step_cost(path: str | Path) -> StepCost:
    """Read a step-cost file; ConfigError names what is wrong with it."""
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"step_cost: cannot read {path}: {error}", param="step_cost") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ConfigError(f"step_cost: {path} is not a {FORMAT} file of version {VERSION}", param="step_cost")
    seconds = content.get("seconds")
    if not isinstance(seconds, dict) or not set(seconds) <= set(_NAMES) or not {"base", "per_token"} <= set(seconds):
        raise ConfigError(f"step_cost: {path} needs 'seconds' with {', '.join(_NAMES)}", param="step_cost")
    for name, value in seconds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < float("inf"):
            raise ConfigError(f"step_cost: {path}: {name} must be at least 0, got {value!r}", param="step_cost")
    if not any(seconds.values()):
        raise ConfigError(f"step_cost: {path}: a step must take some time, all of its costs are 0", param="step_cost")
    return StepCost(**seconds)


_FORGET = 0.995
_RIDGE = 1e-3
_LEAST_STEPS = 16
_SOLVE_EVERY = 8
_SCALE = np.array([1.0, 1e3, 1e5, 1e6])  # brings the features to like size


class OnlineStepCost:
    """Least squares over the steps seen, older ones fading (half after about 140), coefficients kept non-negative."""

    def __init__(self, known: StepCost | None = None) -> None:
        self._cost = known
        self._gram: NDArray[np.float64] = np.zeros((4, 4))
        self._moment: NDArray[np.float64] = np.zeros(4)
        self._fresh: list[tuple[float, ...]] = []
        self._num_fits = 0

    @property
    def cost(self) -> StepCost | None:
        """The model; None until enough steps were seen."""
        return self._cost

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step of `shape` took `seconds`; zero means that nobody measured it."""
        if seconds <= 0.0:
            return
        self._fresh.append((seconds, *shape))
        if len(self._fresh) == _SOLVE_EVERY:
            self._fit()

    def _fit(self) -> None:
        """Take in the steps since the last fit."""
        steps = np.array(self._fresh)
        self._fresh.clear()
        age = np.arange(_SOLVE_EVERY - 1, -1, -1)
        # relative errors count: a decode step of 5 ms matters as much as a prompt step of 500 ms
        features = np.column_stack([np.ones(len(steps)), steps[:, 1:]]) / _SCALE / steps[:, :1]
        faded = features * (_FORGET**age)[:, None]
        self._gram = _FORGET**_SOLVE_EVERY * self._gram + faded.T @ features
        self._moment = _FORGET**_SOLVE_EVERY * self._moment + faded.sum(axis=0)
        self._num_fits += 1
        if self._num_fits * _SOLVE_EVERY >= _LEAST_STEPS:
            self._cost = StepCost(*(float(value) for value in self._solve() / _SCALE))

    def _solve(self) -> NDArray[np.float64]:
        """Non-negative least squares: drop the most negative coefficient and solve again."""
        active = list(range(4))
        ridge = _RIDGE * np.maximum(np.diag(self._gram), 1e-12)
        while True:
            part = np.ix_(active, active)
            solved = np.linalg.solve(self._gram[part] + np.diag(ridge[active]), self._moment[active])
            if solved.min() >= 0.0:
                break
            active.pop(int(solved.argmin()))
        values = np.zeros(4)
        values[active] = solved
        return values
