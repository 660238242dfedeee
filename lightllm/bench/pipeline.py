"""The engine loop by itself: token ids in, token ids out, every step recorded. No tokenizer, no text.

The scheduler, the loop and the engine are the server's own; only the detokenizer is missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

from lightllm.bench.bounds import StepWork
from lightllm.bench.workloads import TokenRequest
from lightllm.config.settings import Settings
from lightllm.engine.runner import Engine, Ticket
from lightllm.errors import EngineError, error_from_code
from lightllm.ipc import local_channel
from lightllm.protocol.messages import Submit, TokenBatch, TokenOutput, TopLogprobs, pack_ids
from lightllm.protocol.plan import StepPlan, StepResult
from lightllm.protocol.sampling_params import WHOLE_VOCABULARY, SamplingParams
from lightllm.scheduler.cost import StepShape, shape_of
from lightllm.workers.engine import EngineLoop, build_parts


@dataclass(frozen=True, slots=True)
class Step:
    """A step that ran: its shape for the cost model, its work for the bound, and its seconds on the device."""

    shape: StepShape
    work: StepWork
    num_sequences: int
    seconds: float

    @property
    def only_decodes(self) -> bool:
        return self.work.num_tokens == self.num_sequences == self.work.num_logits


@dataclass(slots=True)
class Generated:
    """What one request gave: its tokens and, in seconds after the start of the run, when each of them came.

    `scores` has an entry for each prompt token of a scored request, None for the first.
    """

    token_ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    scores: list[TopLogprobs | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Run:
    """One run over some requests, all sent at once: results in their order, steps in theirs, wall-clock seconds."""

    generated: list[Generated]
    steps: list[Step]
    seconds: float


class TokenPipeline:
    """An engine loop in this process. Raises what `build_parts` raises."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        parts = build_parts(settings, directory)
        self._recorder = _Recorder(parts.engine)
        channel: tuple[Any, Any] = local_channel()
        outbox, self._results = channel
        self._loop = EngineLoop(replace(parts, engine=cast(Engine, self._recorder)), [], outbox)
        self._request_ids = count(1)
        self.facts = parts.facts
        self.resolved = parts.resolved

    def run(self, requests: Sequence[TokenRequest]) -> Run:
        """Run all requests to their full length. Raises the error of the first that fails."""
        self._recorder.begin()
        begun = time.perf_counter()
        open_requests: dict[int, Generated] = {}
        for request in requests:
            submit = self._submit(request)
            open_requests[submit.request_id] = Generated()
            self._loop.handle(submit)
        generated = list(open_requests.values())
        while open_requests:
            busy = self._loop.step()
            for output in self._received():
                self._take(output, open_requests, time.perf_counter() - begun)
            if not busy and open_requests:
                raise EngineError(f"{len(open_requests)} requests wait and nothing runs")
        seconds = time.perf_counter() - begun
        return Run(generated, self._recorder.steps(), seconds)

    def prepare(self) -> None:
        """Do what a server does while it is idle: capture the graphs that later steps would wait for."""
        while self._recorder.prepare_next():
            pass

    def close(self) -> None:
        """Give back the engine's thread and memory."""
        self._recorder.close()

    def _submit(self, request: TokenRequest) -> Submit:
        params = SamplingParams(
            max_tokens=request.output_len,
            temperature=request.temperature,
            ignore_eos=True,
            detokenize=False,
            prompt_logprobs=WHOLE_VOCABULARY if request.scored else None,
        )
        request_id = next(self._request_ids)
        return Submit(
            request_id, pack_ids(request.prompt), params, request.output_len, seed=request_id, arrival=time.monotonic()
        )

    def _received(self) -> list[TokenOutput]:
        return [o for m in self._results.receive() if isinstance(m, TokenBatch) for o in m.outputs]

    def _take(self, output: TokenOutput, open_requests: dict[int, Generated], now: float) -> None:
        if output.error is not None:
            raise error_from_code(*output.error)
        generated = open_requests[output.request_id]
        generated.token_ids.extend(output.token_ids)
        generated.times.extend([now] * len(output.token_ids))
        generated.scores.extend(output.prompt_logprobs)
        if output.finish is not None:
            del open_requests[output.request_id]


class _Recorder:
    """Stands before an engine and notes what each step was and how long it took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._plans: dict[int, StepPlan] = {}
        self._done: list[tuple[StepPlan, float]] = []

    def begin(self) -> None:
        """Forget the steps of the last run."""
        self._done = []

    def steps(self) -> list[Step]:
        """The steps since then. Worked out here, after the run: what it costs is not part of what is measured."""
        return [Step(shape_of(plan), StepWork.of(plan), plan.num_sequences, seconds) for plan, seconds in self._done]

    def launch(self, plan: StepPlan) -> Ticket:
        self._plans[plan.step] = plan
        return self._engine.launch(plan)

    def collect(self, ticket: Ticket) -> StepResult:
        result = self._engine.collect(ticket)
        self._done.append((self._plans.pop(ticket.step), result.seconds))
        return result

    def prepare_next(self) -> bool:
        return self._engine.prepare_next()

    def close(self) -> None:
        self._engine.close()
