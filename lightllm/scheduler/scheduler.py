"""The scheduler: from the state of all requests to the next step's plan, and from a step's result to outputs.

A pure function of its state: no torch, no sockets, no threads, no clock (time is an argument). Decodes come first,
then prompts in progress, then newcomers, all under one token budget; a step mixes them freely. When memory runs out
a running request is preempted: its KV stays in the prefix tree while there is room, and it is computed again later.

    policies/     in which order the waiting are tried      residence     rows, slots, prefix tree of the running
    estimators    how long they will run                    preemption    who leaves when memory runs out
    admission     whether one more fits                     composition   how many prompt tokens a step takes
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from lightllm.config.settings import SchedulerSettings
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import FinishReason, Submit, TokenOutput, TopLogprobs
from lightllm.protocol.plan import StepPlan, StepResult
from lightllm.scheduler.admission import Admission
from lightllm.scheduler.composition import Composition
from lightllm.scheduler.cost import StepCost, StepShape
from lightllm.scheduler.draft import Draft, Launched
from lightllm.scheduler.estimators import Ended, Estimator
from lightllm.scheduler.lengths import Int64, Lengths
from lightllm.scheduler.policies import Policy
from lightllm.scheduler.preemption import choose_victim
from lightllm.scheduler.request import NO_ROW, Request, State
from lightllm.scheduler.residence import Residence
from lightllm.scheduler.results import Counters, logprob_entries, prompt_entries

_MOST_MISFITS = 4
"""Requests that are asked for in one pass though an earlier one did not fit: bounds the time of a step."""
_PATIENT_STEPS = 8
"""Steps until a refused request is tried again though nobody has come or gone."""


class Scheduler:
    """Continuous batching over token memory. `eos_ids` end a request unless it ignores them.

    `max_step_tokens` and `chunk_size` must be resolved. `max_len` is the longest request (prompt and output).
    `shareable_len` bounds the positions whose KV depends on the tokens alone (see models with dynamic rotary).
    `extra_tokens` are slots that each running request may take in a step beyond its own token (speculation).
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        memory: TokenMemory,
        policy: Policy,
        estimator: Estimator,
        *,
        max_len: int,
        eos_ids: tuple[int, ...] = (),
        shareable_len: int | None = None,
        extra_tokens: int = 0,
    ) -> None:
        self._settings = settings
        self.memory = memory
        self._policy = policy
        self._estimator = estimator
        self._max_len = max_len
        self._eos_ids = eos_ids
        self._eos = np.array(eos_ids, np.int32)
        self._lengths = Lengths()
        self._composition = Composition(settings)
        self._residence = Residence(
            memory,
            self._lengths,
            num_rows=settings.max_running,
            max_len=max_len,
            shareable_len=max_len if shareable_len is None else shareable_len,
            prefix_cache=settings.prefix_cache,
            eos_ids=eos_ids,
        )
        chunk = self._composition.max_chunk
        self._admission = Admission(memory, self._lengths, estimator, chunk=chunk, extra_tokens=extra_tokens)
        self._requests: dict[int, Request] = {}
        self._running: dict[int, Request] = {}
        self._launched: deque[Launched] = deque()
        self._outputs: list[TokenOutput] = []
        self._tenants: dict[str, int] = {}
        self._num_submitted = 0
        self._next_step = 0
        self._events = 0
        self._refusal = (-1, 0)
        self.counters = Counters()
        self.preempted: deque[int] = deque(maxlen=1000)
        """Ids of the requests preempted last; whoever reads them clears them."""

    # -- what came in ----------------------------------------------------------------------------------------

    def submit(self, submit: Submit, now: float) -> None:
        """Queue a request. The caller has checked that prompt and output fit `max_len` and the pool."""
        tenant = self._tenants.setdefault(submit.tenant, len(self._tenants))
        request = Request(submit, self._num_submitted, self._lengths, tenant)
        self._num_submitted += 1
        self._events += 1
        assert request.prompt_len > 0 and request.max_len <= min(self._max_len, self.memory.total)
        self._requests[request.request_id] = request
        self._estimator.on_submit(submit.max_tokens)
        self._policy.append(request, now)

    def abort(self, request_id: int, now: float) -> None:
        """End a request in whatever state it is; unknown ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            reused = request.reused_len
            self._close(request, now)
            self._outputs.append(TokenOutput(request_id, finish=FinishReason.ABORT, cached_tokens=reused))
            self._residence.free_duplicates()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._policy)

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def request_ids(self) -> list[int]:
        return list(self._requests)

    @property
    def has_work(self) -> bool:
        """Whether a further call of `schedule` could give a plan, now or after an awaited result."""
        return bool(self._requests) or bool(self._launched)

    @property
    def step_cost(self) -> StepCost | None:
        """The step-cost model: measured, or fitted to the steps so far; None while unknown."""
        return self._composition.cost

    def take_outputs(self) -> list[TokenOutput]:
        """Outputs that arose outside a step's result (aborts, refusals), and forget them."""
        outputs, self._outputs = self._outputs, []
        return outputs

    # -- planning ----------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can be launched now."""
        self.memory.stamp(self._next_step)
        self._refuse_hopeless(now)
        draft = Draft()
        room = self._add_decodes(draft, now)
        room -= self._add_prompts_in_progress(draft, room, now)
        self._add_newcomers(draft, room, now)
        plan = self._launch(draft) if draft.requests else None
        self._residence.free_duplicates()
        return plan

    def _add_decodes(self, draft: Draft, now: float) -> int:
        """One token for everyone who decodes; returns how many prompt tokens the step may take besides."""
        requests = self._ready_decodes()
        while len(requests) > self.memory.available:
            if not self._preempt_one(set(), now):
                requests = requests[: self.memory.available]
                break
            requests = [request for request in requests if request.state is State.DECODE]
        if not requests:
            return self._composition.prompt_tokens(0, 0, np.inf)
        lengths = self._lengths
        indices = np.array([request.index for request in requests], np.int64)
        starts = lengths.computed[indices]
        slots = self._residence.compute_decodes(indices)
        lengths.known[indices] += 1
        draft.add_decodes(requests, lengths.row[indices], starts, slots)
        strictest = float(lengths.tpot_target[indices].min())
        return self._composition.prompt_tokens(len(requests), int(starts.sum()), strictest)

    def _ready_decodes(self) -> list[Request]:
        """Those who may generate one more token; when the budget is too small for all, they take turns."""
        decoding = [request for request in self._running.values() if request.state is State.DECODE]
        if not decoding:
            return decoding
        indices = np.array([request.index for request in decoding], np.int64)
        open_ended = self._lengths.known[indices] < self._lengths.limit[indices]
        if not open_ended.all():
            decoding = [request for request, ready in zip(decoding, open_ended.tolist(), strict=True) if ready]
        most = self._composition.max_tokens
        if len(decoding) > most:
            first = self._next_step * most % len(decoding)
            decoding = (decoding[first:] + decoding[:first])[:most]
        return decoding

    def _add_prompts_in_progress(self, draft: Draft, room: int, now: float) -> int:
        """Next chunks of prompts that are under way, oldest first; returns the tokens planned."""
        spent = 0
        prompts = self._prompts()
        spared = {request.serial for request in draft.requests} if prompts else set()
        for request in prompts:
            if spent >= room:
                break
            if request.state is not State.PREFILL or request.complete:
                continue
            self._residence.extend(request)
            while self.memory.available < 1 and self._preempt_one(spared | self._older(request), now):
                pass
            planned = self._add_chunk(draft, request, room - spent)
            if planned:
                spent += planned
                spared.add(request.serial)
        return spent

    def _older(self, request: Request) -> set[int]:
        """Serials of the running that came no later than `request`: it may not push them out."""
        return {serial for serial in self._running if serial <= request.serial}

    def _add_chunk(self, draft: Draft, request: Request, room: int) -> int:
        """Plan the next piece of a prompt, as long as chunk, room and memory allow; returns its length."""
        count = min(request.todo, self._composition.max_chunk, room, self.memory.available)
        if count <= 0:
            return 0
        start = request.computed_len
        slots = self._residence.compute_prompt(request, count)
        sampled = request.todo == 0 and request.known_len < request.max_len
        if sampled:
            request.known_len += 1
            request.move(State.DECODE)
        wants_scores = request.submit.params.prompt_logprobs is not None
        scored = wants_scores and start < request.prompt_len and request.scored_len < request.prompt_len
        draft.add_chunk(request, start, slots, sampled=sampled, scored=scored)
        return count

    def _add_newcomers(self, draft: Draft, room: int, now: float) -> None:
        """Let waiting requests in, in the policy's order, while rows, room and the future peak allow."""
        if not len(self._policy) or room <= 0:
            return
        if self._running and (self._next_step % self._settings.admission_interval or self._refused_lately()):
            return
        self._admission.begin(np.array([request.index for request in self._running.values()], np.int64))
        misfits: list[Request] = []
        for request in self._policy.candidates(now, self):
            if room <= 0 or not self._residence.has_free_row:
                return
            if request.num_pending:
                continue
            if not self._fits(request):
                misfits.append(request)
                self._refusal = self._events, self._next_step
                if self._must_wait_for(misfits):
                    return
                continue
            for passed in misfits:
                passed.num_overtaken += 1
            self._open(request, now)
            room -= self._add_chunk(draft, request, room)
            if misfits and self._must_wait_for(misfits):
                return

    def _refused_lately(self) -> bool:
        """Whether somebody was refused a few steps ago and nobody has come or gone since."""
        events, step = self._refusal
        return events == self._events and self._next_step - step < _PATIENT_STEPS

    def _fits(self, request: Request) -> bool:
        """Whether the future peak leaves room for `request`; one alone always fits."""
        fits = self._admission.fits(request, self._residence.matchable(request), self._prompts())
        return fits or not self._running

    def _must_wait_for(self, misfits: list[Request]) -> bool:
        """Whether nobody may be admitted any more past those that did not fit."""
        allowed = self._settings.overtaking
        worn_out = any(request.num_overtaken >= allowed or request.num_preemptions for request in misfits)
        return self._policy.strict or worn_out or len(misfits) >= _MOST_MISFITS

    def _open(self, request: Request, now: float) -> None:
        self._policy.remove(request)
        request.move(State.PREFILL)
        request.opened_step = self._next_step
        self._running[request.serial] = request
        self._residence.open(request)
        self._policy.on_admit(request, now)
        self.counters.on_admit(request)
        if request.num_preemptions == 0:
            request.reused_len = request.matched_len

    def _launch(self, draft: Draft) -> StepPlan:
        opened, patches = self._residence.take_changes()
        plan, launched = draft.finish(self._next_step, self._lengths, opened, patches)
        self._launched.append(launched)
        self._next_step += 1
        self.counters.num_steps += 1
        return plan

    def _prompts(self) -> list[Request]:
        """Running requests whose prompt is in progress, oldest first."""
        prompts = [request for request in self._running.values() if request.state is State.PREFILL]
        return sorted(prompts, key=lambda request: request.serial)

    # -- what a policy may ask (its `Outlook`) -------------------------------------------------------------------

    def cached_len(self, request: Request) -> int:
        """Leading tokens whose KV is in the prefix tree now."""
        return self.memory.peek(self._residence.matchable(request), request.submit.cache_salt).matched_len

    def expected_output(self, request: Request) -> float:
        """Tokens a request is still expected to generate."""
        allowed = request.max_len - request.known_len
        return self._estimator.expected_output(request.num_generated, allowed, request.tenant)

    def prefill_seconds(self, request: Request) -> float:
        """Time to compute its prompt if it began now and alone; 0 while the cost of a step is unknown."""
        cost = self._composition.cost
        if cost is None:
            return 0.0
        tokens = request.prompt_len
        steps = -(-tokens // self._composition.max_chunk)
        return cost.seconds(StepShape(tokens, 0, tokens * tokens / 2)) + cost.base * (steps - 1)

    # -- results -----------------------------------------------------------------------------------------------

    def apply(self, result: StepResult, now: float) -> list[TokenOutput]:
        """Take in a step's result: append tokens, finish requests, free memory; returns what to tell the outside."""
        launched = self._launched.popleft()
        assert launched.step == result.step, f"result of step {result.step}, expected {launched.step}"
        self._composition.observe(launched.shape, result.seconds)
        outputs = self.take_outputs()
        plain = not (result.logprobs or result.prompt_logprobs or result.failed) and bool((result.counts == 1).all())
        outputs += self._apply_plain(launched, result, now) if plain else self._apply_any(launched, result, now)
        self._residence.free_duplicates()
        return outputs

    def _apply_plain(self, launched: Launched, result: StepResult, now: float) -> list[TokenOutput]:
        """One token for each sampled sequence and nothing else: array operations, and a short loop."""
        lengths = self._lengths
        alive = lengths.serial[launched.indices] == launched.serials
        outputs: list[TokenOutput] = []
        for place in np.flatnonzero(alive & ~launched.sampled).tolist():
            outputs += self._accept(launched.requests[place], [], end=int(launched.ends[place]), now=now)
        chosen = np.flatnonzero(launched.sampled & alive)
        indices = launched.indices[chosen]
        tokens = result.token_ids[alive[launched.sampled]]
        valued = lengths.valued[indices]
        lengths.valued[indices] = valued + 1
        at_eos = (tokens[:, None] == self._eos).any(axis=1) & lengths.stops_at_eos[indices]
        may_end = at_eos | lengths.has_stops[indices] | (valued + 1 >= lengths.limit[indices])
        requests = [launched.requests[place] for place in chosen.tolist()]
        self._policy.on_tokens(requests, now)
        for request, token, position, last in zip(
            requests, tokens.tolist(), valued.tolist(), may_end.tolist(), strict=True
        ):
            request.buffer[position] = token
            if last:
                outputs.append(self._say(request, (token,), *self._end_after(request, token), now=now))
            else:
                outputs.append(TokenOutput(request.request_id, (token,), (), None, None, request.reused_len))
        return outputs

    def _apply_any(self, launched: Launched, result: StepResult, now: float) -> list[TokenOutput]:
        """The general case, sequence by sequence."""
        outputs: list[TokenOutput] = []
        alive = (self._lengths.serial[launched.indices] == launched.serials).tolist()
        bounds = np.concatenate([[0], np.cumsum(result.counts)]).tolist()
        num_sampled = 0
        for place, request in enumerate(launched.requests):
            sampled = bool(launched.sampled[place])
            tokens: list[int] = []
            logprobs: tuple[TopLogprobs, ...] = ()
            if sampled:
                tokens = result.token_ids[bounds[num_sampled] : bounds[num_sampled + 1]].tolist()
                logprobs = logprob_entries(result.logprobs.get(num_sampled))
                num_sampled += 1
            if not alive[place]:
                continue
            if place in result.failed:
                outputs.append(self._fail(request, result.failed[place], now))
                continue
            scores = prompt_entries(request, int(launched.starts[place]), result.prompt_logprobs.get(place))
            outputs += self._accept(request, tokens, logprobs, scores, end=int(launched.ends[place]), now=now)
        return outputs

    def _accept(
        self,
        request: Request,
        tokens: Iterable[int],
        logprobs: tuple[TopLogprobs, ...] = (),
        prompt_logprobs: tuple[TopLogprobs | None, ...] = (),
        *,
        end: int,
        now: float,
    ) -> list[TokenOutput]:
        """One sequence's share of a result, of tokens computed up to `end`; nothing when it has nothing to say yet."""
        finish: FinishReason | None = None
        stop_token: int | None = None
        taken: list[int] = []
        for token in tokens:
            request.append(token)
            taken.append(token)
            self._policy.on_tokens([request], now)
            finish, stop_token = self._end_after(request, token)
            if finish is not None:
                break
        if end == request.prompt_len == request.max_len:
            finish = FinishReason.LENGTH
        if not taken and finish is None and not prompt_logprobs:
            return []
        entries = logprobs[: len(taken)]
        return [self._say(request, tuple(taken), finish, stop_token, entries, prompt_logprobs, now=now)]

    def _say(
        self,
        request: Request,
        tokens: tuple[int, ...],
        finish: FinishReason | None,
        stop_token: int | None,
        logprobs: tuple[TopLogprobs, ...] = (),
        prompt_logprobs: tuple[TopLogprobs | None, ...] = (),
        *,
        now: float,
    ) -> TokenOutput:
        """The output, and the end of the request if it is the last."""
        reused = request.reused_len
        if finish is not None:
            self._close(request, now, by_itself=True)
        return TokenOutput(request.request_id, tokens, logprobs, finish, stop_token, reused, prompt_logprobs)

    def _end_after(self, request: Request, token: int) -> tuple[FinishReason | None, int | None]:
        """Whether `token`, just appended, ends the request; a stop token id that the caller gave is reported."""
        params = request.submit.params
        valued = request.valued_len
        if valued - request.prompt_len >= params.min_tokens:
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
            if token in self._eos_ids and not params.ignore_eos:
                return FinishReason.STOP, None
        if valued >= request.max_len:
            return FinishReason.LENGTH, None
        return None, None

    # -- endings -----------------------------------------------------------------------------------------------

    def fail_launched(self, message: str, now: float) -> list[TokenOutput]:
        """The oldest awaited step broke: its requests fail, and so does whoever read a prefix it computed.

        Those who read it but have no token under way are computed again; no cached prefix is trusted any more.
        """
        launched = self._launched.popleft()
        outputs = self.take_outputs()
        alive = self._lengths.serial[launched.indices] == launched.serials
        broken = [request for request, here in zip(launched.requests, alive.tolist(), strict=True) if here]
        for request in broken:
            outputs.append(self._fail(request, message, now))
        for request in list(self._running.values()):
            if request.node is not None and self.memory.newest_birth(request.node) >= launched.step:
                if request.num_pending:
                    outputs.append(self._fail(request, message, now))
                else:
                    self._requeue(request, now, trusted=False)
        self._residence.free_duplicates()
        self.memory.forget()
        return outputs

    def _fail(self, request: Request, message: str, now: float) -> TokenOutput:
        self._close(request, now, trusted=False)
        return TokenOutput(request.request_id, finish=FinishReason.ERROR, error=("engine_error", message))

    def _refuse_hopeless(self, now: float) -> None:
        """End the waiting requests that the policy gives up on."""
        for request in self._policy.hopeless(now, self):
            target = request.submit.ttft_target
            goal = "in time" if target is None else f"within {target:g} s"
            message = f"the first token cannot be given {goal}: {len(self._policy)} requests wait"
            self._close(request, now)
            self.counters.num_refused += 1
            self._outputs.append(
                TokenOutput(request.request_id, finish=FinishReason.ERROR, error=("overloaded", message))
            )

    def _close(self, request: Request, now: float, *, trusted: bool = True, by_itself: bool = False) -> None:
        """Take a request out of whatever state it is in and give back all it has."""
        generated = request.valued_len - request.prompt_len
        if by_itself or generated:
            limit = request.max_len - request.prompt_len
            self._estimator.on_finish(Ended(generated, limit, request.tenant, by_itself))
        if request.state is State.QUEUED:
            self._policy.remove(request)
        else:
            self._leave(request, trusted=trusted)
        request.move(State.FINISHED)
        self._policy.on_finish(request, now)
        if by_itself:
            self.counters.on_finish(request)
        request.close()
        del self._requests[request.request_id]

    def _preempt_one(self, spared: set[int], now: float) -> bool:
        """Send one running request back to the queue; False if nobody can go."""
        order = self._settings.preemption
        victim = choose_victim(list(self._running.values()), spared, self.memory, self._lengths, order)
        if victim is None:
            return False
        self._requeue(victim, now, trusted=True)
        victim.num_preemptions += 1
        self.counters.num_preemptions += 1
        self.preempted.append(victim.request_id)
        self._estimator.on_evict()
        return True

    def _requeue(self, request: Request, now: float, *, trusted: bool) -> None:
        """What it computed stays in the prefix tree while there is room."""
        self._leave(request, trusted=trusted)
        request.move(State.QUEUED)
        self._policy.requeue(request, now)

    def _leave(self, request: Request, *, trusted: bool) -> None:
        """Stop running. Prompts that counted on this one's prefix must not count on it any more."""
        self._events += 1
        if request.state is State.PREFILL:
            self._lengths.promised[self._indices()] = 0
        self._residence.release(request, trusted=trusted)
        del self._running[request.serial]

    def _indices(self) -> Int64:
        return np.array([request.index for request in self._running.values()], np.int64)

    def check(self) -> None:
        """Assert the invariants of every request and of the memory, slot by slot (tests, and when idle)."""
        self.memory.check()
        for request in self._requests.values():
            request.check()
            assert (request.row == NO_ROW) == (request.state is State.QUEUED)
        self._residence.check(list(self._running.values()))
