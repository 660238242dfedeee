"""The scheduler: from the state of all requests to the next step's plan, and from a step's result to outputs.

A pure function of its state: no torch, no sockets, no threads, no clock (time is an argument). Decodes come first,
then prompts in progress, then newcomers, all under one token budget; a step mixes them freely. When memory runs out
a running request is preempted: its KV stays in the prefix tree while there is room, and it is computed again later.

    policies/     in which order the waiting are tried      roster        who is there, and in what state
    estimators    how long they will run                    residence     rows, slots, prefix tree of the running
    admission     whether one more fits                     preemption    who leaves when memory runs out
    composition   how many prompt tokens a step takes       completion    from a step's result to outputs
"""

from __future__ import annotations

from collections import deque

import numpy as np

from lightllm.config.settings import SchedulerSettings
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import FinishReason, Submit, TokenOutput
from lightllm.protocol.plan import StepPlan, StepResult
from lightllm.scheduler.admission import Admission
from lightllm.scheduler.completion import Completion
from lightllm.scheduler.composition import Composition
from lightllm.scheduler.cost import StepCost, StepShape
from lightllm.scheduler.draft import Draft, Launched
from lightllm.scheduler.estimators import Estimator
from lightllm.scheduler.lengths import Int64, Lengths
from lightllm.scheduler.policies import Policy
from lightllm.scheduler.preemption import choose_victim
from lightllm.scheduler.request import Request, State
from lightllm.scheduler.residence import Residence
from lightllm.scheduler.results import Counters
from lightllm.scheduler.roster import Roster

_MOST_MISFITS = 4
"""Requests that are asked for in one pass though an earlier one did not fit: bounds the time of a step."""
_PATIENT_STEPS = 8
"""Steps until a refused request is tried again though nobody has come or gone."""


class Scheduler:
    """Continuous batching over token memory. `eos_ids` end a request unless it ignores them.

    `max_running`, `max_step_tokens` and `chunk_size` must be resolved. `max_len` is the longest request (prompt and
    output).
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
        self._lengths = Lengths()
        self._composition = Composition(settings)
        self._residence = Residence(
            memory,
            self._lengths,
            num_rows=settings.running_limit,
            max_len=max_len,
            shareable_len=max_len if shareable_len is None else shareable_len,
            prefix_cache=settings.prefix_cache,
            eos_ids=eos_ids,
        )
        chunk = self._composition.max_chunk
        self._admission = Admission(memory, self._lengths, estimator, chunk=chunk, extra_tokens=extra_tokens)
        self.counters = Counters(settings.tenant_weights)
        """What was done since the start."""
        self._roster = Roster(memory, self._lengths, self._residence, policy, estimator, self.counters)
        self._completion = Completion(self._roster, self._lengths, policy, eos_ids)
        self._launched: deque[Launched] = deque()
        self._outputs: list[TokenOutput] = []
        self._next_step = 0
        self._refusal = (-1, 0)

    # -- what came in ----------------------------------------------------------------------------------------

    def submit(self, submit: Submit, now: float) -> None:
        """Queue a request. The caller has checked that prompt and output fit `max_len` and the pool.

        Raises InvalidRequest when no step is fast enough for a target of the request.
        """
        self._composition.check_targets(submit)
        prompt_len = len(submit.prompt) // 4
        longest = min(self._max_len, self.memory.total)
        assert prompt_len > 0 and prompt_len + submit.max_tokens <= longest, (
            f"a prompt of {prompt_len} tokens and an output of {submit.max_tokens} do not fit {longest}"
        )
        self._roster.submit(submit, now)

    def abort(self, request_id: int, now: float, *, complete: bool = False) -> None:
        """End a request in whatever state it is; unknown ids are ignored. The length of one that is `complete`, as by a
        stop string, teaches the estimator."""
        request = self._roster.requests.get(request_id)
        if request is not None:
            reused = request.reused_len
            self._roster.close(request, now, by_itself=complete)
            self._outputs.append(TokenOutput(request_id, finish=FinishReason.ABORT, cached_tokens=reused))
            self._residence.free_duplicates()

    @property
    def preempted(self) -> deque[int]:
        """Ids of the requests preempted last, at most a thousand; whoever reads them clears them."""
        return self._roster.preempted

    @property
    def num_running(self) -> int:
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        return len(self._policy)

    @property
    def num_requests(self) -> int:
        return len(self._roster.requests)

    @property
    def request_ids(self) -> list[int]:
        return list(self._roster.requests)

    @property
    def has_work(self) -> bool:
        """Whether a further call of `schedule` could give a plan, now or after an awaited result."""
        return bool(self._roster.requests) or bool(self._launched)

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
        lengths = self._lengths
        indices = self._ready_decodes()
        while len(indices) > self.memory.available:
            if not self._preempt_one(set(), now):
                indices = indices[: self.memory.available]
                break
            indices = indices[lengths.decoding[indices]]
        if not len(indices):
            return self._composition.prompt_tokens(0, 0, np.inf)
        starts = lengths.computed[indices]
        slots = self._residence.compute_decodes(indices)
        lengths.known[indices] += 1
        draft.add_decodes(lengths.owner[indices].tolist(), indices, lengths.row[indices], starts, slots)
        strictest = float(lengths.tpot_target[indices].min())
        return self._composition.prompt_tokens(len(indices), int(starts.sum()), strictest)

    def _ready_decodes(self) -> Int64:
        """Indices of those who may generate one more token; when the budget is too small for all, they take turns."""
        lengths, most = self._lengths, self._composition.max_tokens
        ready = np.flatnonzero(lengths.decoding & (lengths.known < lengths.limit))
        if len(ready) > most:
            ready = np.roll(ready, -(self._next_step * most % len(ready)))[:most]
        return ready

    def _add_prompts_in_progress(self, draft: Draft, room: int, now: float) -> int:
        """Next chunks of prompts that are under way, oldest first; returns the tokens planned."""
        spent = 0
        prompts = self._roster.prompts()
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
        return {serial for serial in self._roster.running if serial <= request.serial}

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
        if self._roster.running and (self._next_step % self._settings.admission_interval or self._refused_lately()):
            return
        self._admission.begin(self._roster.indices())
        prompts = self._roster.prompts()
        misfits: list[Request] = []
        for request in self._policy.candidates(now, self):
            if room <= 0 or not self._residence.has_free_row:
                return
            if request.num_pending:
                continue
            fits = self._admission.fits(request, self._residence.matchable(request), prompts)
            if fits or not self._roster.running:
                for passed in misfits:
                    passed.num_overtaken += 1
                self._roster.open(request, self._next_step, now)
                room -= self._add_chunk(draft, request, room)
                prompts.append(request)
            else:
                misfits.append(request)
                self._refusal = self._roster.num_events, self._next_step
            if (misfits or not fits) and self._must_wait_for(misfits):
                return

    def _refused_lately(self) -> bool:
        """Whether somebody was refused a few steps ago and nobody has come or gone since."""
        events, step = self._refusal
        return events == self._roster.num_events and self._next_step - step < _PATIENT_STEPS

    def _must_wait_for(self, misfits: list[Request]) -> bool:
        """Whether nobody may be admitted any more past those that did not fit (or past one too large for the pool)."""
        allowed = self._settings.overtaking
        worn_out = any(request.num_overtaken >= allowed or request.num_preemptions for request in misfits)
        return not misfits or self._policy.strict or worn_out or len(misfits) >= _MOST_MISFITS

    def _launch(self, draft: Draft) -> StepPlan:
        opened, patches = self._residence.take_changes()
        plan, launched = draft.finish(self._next_step, self._lengths, opened, patches)
        self._launched.append(launched)
        self._next_step += 1
        self.counters.num_steps += 1
        return plan

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
        outputs += self._completion.take(launched, result, now)
        self._residence.free_duplicates()
        return outputs

    def fail_launched(self, message: str, now: float) -> list[TokenOutput]:
        """The oldest awaited step broke: its requests fail, and so does whoever read a prefix it computed.

        Those who read it but have no token under way are computed again; no cached prefix is trusted any more.
        """
        launched = self._launched.popleft()
        outputs = self.take_outputs()
        alive = self._lengths.serial[launched.indices] == launched.serials
        broken = [request for request, here in zip(launched.requests, alive.tolist(), strict=True) if here]
        for request in broken:
            outputs.append(self._completion.fail(request, message, now))
        for request in list(self._roster.running.values()):
            if request.node is not None and self.memory.newest_birth(request.node) >= launched.step:
                if request.num_pending:
                    outputs.append(self._completion.fail(request, message, now))
                else:
                    self._roster.requeue(request, now, trusted=False)
        self._residence.free_duplicates()
        self.memory.forget()
        return outputs

    def _refuse_hopeless(self, now: float) -> None:
        """End the waiting requests that the policy gives up on."""
        for request in self._policy.hopeless(now, self):
            target = request.submit.ttft_target
            goal = "in time" if target is None else f"within {target:g} s"
            message = f"the first token cannot be given {goal}: {len(self._policy)} requests wait"
            self._roster.close(request, now)
            self.counters.on_refuse(request)
            self._outputs.append(
                TokenOutput(request.request_id, finish=FinishReason.ERROR, error=("overloaded", message))
            )

    def _preempt_one(self, spared: set[int], now: float) -> bool:
        """Send one running request back to the queue; False if nobody can go."""
        order = self._settings.preemption
        victim = choose_victim(list(self._roster.running.values()), spared, self.memory, self._lengths, order)
        if victim is None:
            return False
        self._roster.preempt(victim, now)
        return True

    def check(self) -> None:
        """Assert the invariants of every request and of the memory, slot by slot (tests, and when idle)."""
        self._roster.check()
