"""A step while it is put together, and what is remembered of it until its result arrives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightllm.protocol.plan import OpenedRow, StepPlan, TablePatch
from lightllm.scheduler.cost import StepShape, shape_of
from lightllm.scheduler.lengths import Int64, Lengths
from lightllm.scheduler.request import Request

Int32 = NDArray[np.int32]


class Launched(NamedTuple):
    """A plan that was handed out and whose result is awaited; sequence s belongs to requests[s].

    A request that ended since has another serial at its index, or none.
    """

    step: int
    requests: list[Request]
    indices: Int64
    serials: Int64
    starts: Int32
    ends: Int32
    sampled: NDArray[np.bool_]
    shape: StepShape


class Draft:
    """Sequences of the coming step: first the decodes as arrays, then prompt chunks one by one."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.num_tokens = 0
        self._indices: list[Int64] = []
        self._rows: list[Int32] = []
        self._starts: list[Int32] = []
        self._lens: list[Int32] = []
        self._slots: list[Int32] = []
        self._sampled: list[NDArray[np.bool_]] = []
        self._scored: list[NDArray[np.bool_]] = []

    def add_decodes(self, requests: list[Request], indices: Int64, rows: Int64, starts: Int64, slots: Int32) -> None:
        """One token each, each sampled."""
        count = len(requests)
        self.requests += requests
        self.num_tokens += count
        self._indices.append(indices)
        self._rows.append(rows.astype(np.int32))
        self._starts.append(starts.astype(np.int32))
        self._lens.append(np.ones(count, np.int32))
        self._slots.append(slots)
        self._sampled.append(np.ones(count, np.bool_))
        self._scored.append(np.zeros(count, np.bool_))

    def add_chunk(self, request: Request, start: int, slots: Int32, *, sampled: bool, scored: bool) -> None:
        """A piece of a prompt; `scored` asks for the log-probabilities of its tokens."""
        self.requests.append(request)
        self.num_tokens += len(slots)
        self._indices.append(np.array([request.index], np.int64))
        self._rows.append(np.array([request.row], np.int32))
        self._starts.append(np.array([start], np.int32))
        self._lens.append(np.array([len(slots)], np.int32))
        self._slots.append(slots)
        self._sampled.append(np.array([sampled], np.bool_))
        self._scored.append(np.array([scored], np.bool_))

    def finish(
        self, step: int, lengths: Lengths, opened: tuple[OpenedRow, ...], patches: tuple[TablePatch, ...]
    ) -> tuple[StepPlan, Launched]:
        """The plan to hand out, and what to remember of it."""
        plan = StepPlan(
            step=step,
            rows=np.concatenate(self._rows),
            starts=np.concatenate(self._starts),
            lens=np.concatenate(self._lens),
            slots=np.concatenate(self._slots),
            sampled=np.concatenate(self._sampled),
            prompt_logprobs=np.concatenate(self._scored),
            opened=opened,
            patches=patches,
        )
        indices = np.concatenate(self._indices)
        serials = lengths.serial[indices]
        ends = plan.starts + plan.lens
        launched = Launched(step, self.requests, indices, serials, plan.starts, ends, plan.sampled, shape_of(plan))
        return plan, launched
