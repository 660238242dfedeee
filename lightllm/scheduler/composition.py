"""How many prompt tokens go into a step beside its decodes.

Without a target a step takes as many as its token budget allows. With one (seconds between tokens, of the server or
the strictest of the running requests), the step-cost model says how many prompt tokens still leave the step under
it; at least a small chunk always goes on, so that prompts are never starved by decodes (Sarathi-Serve,
arXiv 2403.02310, section 4.3: the token budget follows from the target for the time between tokens).
"""

from __future__ import annotations

import numpy as np

from lightllm.config.settings import SchedulerSettings
from lightllm.errors import ConfigError, InvalidRequest
from lightllm.protocol.messages import Submit
from lightllm.scheduler.cost import OnlineStepCost, StepCost, StepShape, load_step_cost

LEAST_CHUNK = 16
SMALL_STEP = 16
"""Tokens up to which a step says how fast the smallest can be."""
_SMALLEST_STEP = StepShape(1, 0)


class Composition:
    """The token budget of a step. `settings.max_step_tokens` must be resolved.

    Raises ConfigError when `tpot_target` lies below what the step-cost file says an empty step takes.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        assert settings.max_step_tokens is not None, "the token budget must be resolved"
        self.max_tokens = settings.max_step_tokens
        self.max_chunk = min(settings.chunk_size or self.max_tokens, self.max_tokens)
        self.target = settings.tpot_target
        known = load_step_cost(settings.step_cost) if settings.step_cost else None
        self._online = OnlineStepCost(known)
        self._fastest = np.inf
        self._known_least = None if known is None else known.seconds(_SMALLEST_STEP)
        if self.target is not None and self.target < self.least_seconds:
            raise ConfigError(_beyond_reach("tpot_target", self.target, self.least_seconds), param="tpot_target")

    @property
    def cost(self) -> StepCost | None:
        """The step-cost model as it stands; None before enough steps were measured."""
        return self._online.cost

    @property
    def least_seconds(self) -> float:
        """What no step can beat: one token by the step-cost file, else half of the fastest small step so far; 0 while
        nothing is known. (A fit to larger steps says too little of the smallest.)"""
        if self._known_least is not None:
            return self._known_least
        return 0.5 * self._fastest if np.isfinite(self._fastest) else 0.0

    def check_targets(self, submit: Submit) -> None:
        """Raise InvalidRequest if a target of the request lies below what the smallest step takes."""
        for name, target in (("ttft_target", submit.ttft_target), ("tpot_target", submit.tpot_target)):
            if target is not None and target < self.least_seconds:
                raise InvalidRequest(_beyond_reach(name, target, self.least_seconds), param=name)

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step of `shape` took `seconds`; zero means that nobody measured it."""
        self._online.observe(shape, seconds)
        if 0.0 < seconds < self._fastest and shape.tokens <= SMALL_STEP:
            self._fastest = seconds

    def prompt_tokens(self, num_decodes: int, context: int, strictest: float) -> int:
        """Prompt tokens for a step with `num_decodes` decodes that read `context` slots.

        `strictest` is the smallest TPOT target among the decoding requests, infinite if none has one.
        """
        room = self.max_tokens - num_decodes
        target = strictest if self.target is None else min(strictest, self.target)
        cost = self.cost
        if num_decodes == 0 or cost is None or target == float("inf"):
            return room
        spare = target - cost.seconds(StepShape(num_decodes, context))
        per_token = max(cost.per_token, 1e-9)
        return max(min(room, int(spare / per_token)), min(room, LEAST_CHUNK))


def _beyond_reach(name: str, target: float, least: float) -> str:
    return f"{name} of {target:g} s cannot be met: a step takes at least {least:.3g} s"
