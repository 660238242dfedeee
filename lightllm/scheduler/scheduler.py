"""The scheduler: from the state of all requests to the next step's plan, and from a step's result to outputs.

A pure function of its state: no torch, no sockets, no threads, no clock (time is an argument). Decodes come first,
then prompts in progress, then newcomers, all under one token budget; a step mixes them freely. When memory runs out
the newest running request is preempted: its KV stays in the prefix tree while there is room, and it is computed
again later. A chunk enters the prefix tree as soon as it is planned, since on the device every later read comes
after it: a burst of equal prompts computes the shared part once.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightllm.config.settings import SchedulerSettings
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import FinishReason, Submit, TokenOutput, TopLogprobs
from lightllm.protocol.plan import Logprobs, OpenedRow, StepPlan, StepResult, TablePatch
from lightllm.scheduler.estimators import Estimator
from lightllm.scheduler.peak import future_peak
from lightllm.scheduler.policies import Policy
from lightllm.scheduler.request import NO_ROW, Request, State

Slots = NDArray[np.int32]


class Work(NamedTuple):
    """One sequence's part in a step."""

    request: Request
    start: int
    slots: Slots
    sampled: bool


class Launched(NamedTuple):
    """A plan that was handed out and whose result is awaited."""

    step: int
    work: list[Work]


class Counters:
    """What the scheduler has done since it began; plain integers, read by metrics and tests."""

    __slots__ = ("hit_tokens", "num_preemptions", "num_steps", "queried_tokens", "recomputed_tokens")

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_preemptions = 0
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.recomputed_tokens = 0


class Scheduler:
    """Continuous batching over token memory. `eos_ids` end a request unless it ignores them.

    `max_step_tokens` and `chunk_size` must be resolved. `max_len` is the longest request (prompt and output).
    `shareable_len` bounds the positions whose KV depends on the tokens alone (see models with dynamic rotary).
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
    ) -> None:
        assert settings.max_step_tokens is not None, "the token budget must be resolved"
        self._budget = settings.max_step_tokens
        self._chunk = min(settings.chunk_size or self._budget, self._budget)
        self._settings = settings
        self.memory = memory
        self._policy = policy
        self._estimator = estimator
        self._max_len = max_len
        self._eos_ids = eos_ids
        self._shareable_len = max_len if shareable_len is None else shareable_len
        self._table = np.zeros((settings.max_running, max_len), np.int32)
        self._free_rows = list(range(settings.max_running - 1, -1, -1))
        self._requests: dict[int, Request] = {}
        self._running: list[Request] = []
        self._launched: deque[Launched] = deque()
        self._patches: list[TablePatch] = []
        self._later_patches: list[TablePatch] = []
        self._opened: list[OpenedRow] = []
        self._duplicates: list[Slots] = []
        self._outputs: list[TokenOutput] = []
        self._serials = count()
        self._steps = count()
        self.counters = Counters()

    # -- what came in ----------------------------------------------------------------------------------------

    def submit(self, submit: Submit, now: float) -> None:
        """Queue a request. The caller has checked that prompt and output fit `max_len` and the pool."""
        request = Request(submit, next(self._serials))
        assert request.prompt_len > 0 and request.max_len <= min(self._max_len, self.memory.total)
        self._requests[request.request_id] = request
        self._policy.append(request, now)

    def abort(self, request_id: int, now: float) -> None:
        """End a request in whatever state it is; unknown ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, FinishReason.ABORT, now)
            self._free_duplicates()

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

    def take_outputs(self) -> list[TokenOutput]:
        """Outputs that arose outside a step's result (aborts), and forget them."""
        outputs, self._outputs = self._outputs, []
        return outputs

    # -- planning ----------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can be launched now."""
        work: list[Work] = []
        budget = self._budget
        budget -= self._continue_running(work, budget, now)
        self._admit(work, budget, now)
        plan = self._plan(work) if work else None
        self._free_duplicates()
        return plan

    def _continue_running(self, work: list[Work], budget: int, now: float) -> int:
        """Decodes first, then prompts in progress, oldest first; returns the tokens planned."""
        spent = 0
        planned: set[int] = set()
        decodes = [r for r in self._running if r.state is State.DECODE]
        prompts = [r for r in self._running if r.state is State.PREFILL]
        for request in decodes + prompts:
            if request.state is State.QUEUED or request.complete or spent >= budget:
                continue
            if request.state is State.PREFILL:
                self._extend_match(request)
            wanted = min(request.todo, self._chunk, budget - spent)
            self._make_room(wanted if request.state is State.DECODE else 1, request, planned, now)
            wanted = min(wanted, self.memory.available)
            if wanted:
                work.append(self._compute(request, wanted))
                planned.add(request.serial)
                spent += wanted
        return spent

    def _make_room(self, needed: int, request: Request, planned: set[int], now: float) -> None:
        """Preempt newer requests, newest first, until `needed` slots are available. What this step already computes
        is left alone; with nobody to preempt the request waits a step. The oldest can always go on."""
        while self.memory.available < needed:
            newer = [r for r in self._running if r.serial > request.serial and r.serial not in planned]
            if not newer:
                return
            self._preempt(max(newer, key=lambda r: r.serial), now)

    def _admit(self, work: list[Work], budget: int, now: float) -> None:
        """Let waiting requests in, in the policy's order, while rows, budget and the future peak allow."""
        refused = 0
        for request in self._policy.candidates(now):
            if budget <= 0 or not self._free_rows or refused > self._policy.overtaking:
                return
            if request.num_pending or not self._fits(request):
                refused += 1
                continue
            self._open(request)
            wanted = min(request.todo, self._chunk, budget, self.memory.available)
            if wanted:
                work.append(self._compute(request, wanted))
                budget -= wanted

    def _fits(self, request: Request) -> bool:
        """Whether the future peak with `request` admitted stays within the pool; shared prefixes count once."""
        match = self.memory.match(self._matchable(request), request.submit.cache_salt)
        newly_locked = self.memory.unreferenced_len(match.node)
        everyone = [*self._running, request]
        held = np.array([r.known_len - r.matched_len for r in self._running] + [request.known_len - len(match)])
        peak = future_peak(held, self._estimator.remaining(everyone))
        alone = not self._running
        return self.memory.num_locked + newly_locked + peak <= self.memory.total or alone

    def _matchable(self, request: Request) -> Slots:
        """The tokens that may come from the prefix tree: never the last known one, whose output is wanted."""
        if not request.shares_prefix or request.prompt_len > self._shareable_len:
            return request.tokens[:0]
        return request.tokens[: min(request.known_len - 1, self._shareable_len)]

    def _open(self, request: Request) -> None:
        """Give a waiting request a row and whatever prefix is cached."""
        self._policy.remove(request)
        request.row = self._free_rows.pop()
        request.move(State.PREFILL)
        self._running.append(request)
        submit = request.submit
        opened = OpenedRow(
            request.row,
            request.tokens.copy(),
            request.prompt_len,
            submit.params,
            submit.seed,
            self._eos_ids,
            submit.bad_words,
        )
        self._opened.append(opened)
        self._extend_match(request)
        self.counters.queried_tokens += request.known_len
        self.counters.hit_tokens += request.matched_len
        if request.num_preemptions == 0:
            request.reused_len = request.matched_len
        else:
            self.counters.recomputed_tokens += request.known_len - request.matched_len

    def _extend_match(self, request: Request) -> None:
        """Take over what the tree knows beyond what this request has computed: others may have been faster."""
        match = self.memory.match(self._matchable(request), request.submit.cache_salt)
        if len(match) <= request.computed_len:
            return
        assert request.matched_len == request.computed_len, "a prompt in progress gives all it has to the tree"
        self.memory.lock(match.node)
        if request.node is not None:
            self.memory.unlock(request.node)
        request.node = match.node
        fresh = match.slots[request.computed_len :]
        self._patches.append(self._write_table(request, request.computed_len, fresh))
        request.matched_len = request.computed_len = len(match)

    def _compute(self, request: Request, count: int) -> Work:
        """Plan the next `count` tokens of a request: slots, table, lengths, and the tree if it is a prompt."""
        start = request.computed_len
        slots = self.memory.allocate(count)
        self._table[request.row, start : start + count] = slots
        request.computed_len += count
        sampled = request.todo == 0 and request.known_len < request.max_len
        if request.state is State.PREFILL:
            self._share(request)
        if sampled:
            request.known_len += 1
            if request.state is State.PREFILL:
                request.move(State.DECODE)
        return Work(request, start, slots, sampled)

    def _share(self, request: Request) -> None:
        """Give the computed prefix to the tree; slots of tokens it already had become duplicates and are replaced."""
        length = min(request.computed_len, request.valued_len, self._shareable_len)
        if not request.shares_prefix or request.prompt_len > self._shareable_len or length <= request.matched_len:
            return
        row = self._table[request.row, :length]
        insertion = self.memory.share(request.tokens[:length], row, request.submit.cache_salt)
        already = len(insertion.already)
        if already > request.matched_len:
            self._duplicates.append(row[request.matched_len : already].copy())
            replacement = insertion.already[request.matched_len :]
            self._later_patches.append(self._write_table(request, request.matched_len, replacement))
        self.memory.lock(insertion.node)
        if request.node is not None:
            self.memory.unlock(request.node)
        request.node = insertion.node
        request.matched_len = self._owned_len(request, length)

    def _owned_len(self, request: Request, shared: int) -> int:
        """Tokens of a request that the tree owns after sharing; none when the prefix cache is off."""
        return shared if self._settings.prefix_cache else request.matched_len

    def _write_table(self, request: Request, start: int, slots: Slots) -> TablePatch:
        self._table[request.row, start : start + len(slots)] = slots
        return TablePatch(request.row, start, slots.copy())

    def _plan(self, work: list[Work]) -> StepPlan:
        step = next(self._steps)
        self._launched.append(Launched(step, work))
        self.counters.num_steps += 1
        opened, self._opened = tuple(self._opened), []
        patches, self._patches = tuple(self._patches), self._later_patches
        self._later_patches = []
        return StepPlan(
            step=step,
            rows=np.array([w.request.row for w in work], np.int32),
            starts=np.array([w.start for w in work], np.int32),
            lens=np.array([len(w.slots) for w in work], np.int32),
            slots=np.concatenate([w.slots for w in work]),
            sampled=np.array([w.sampled for w in work], np.bool_),
            prompt_logprobs=np.array([_wants_prompt_logprobs(w) for w in work], np.bool_),
            opened=opened,
            patches=patches,
        )

    # -- results -----------------------------------------------------------------------------------------------

    def apply(self, result: StepResult, now: float) -> list[TokenOutput]:
        """Take in a step's result: append tokens, finish requests, free memory; returns what to tell the outside."""
        launched = self._launched.popleft()
        assert launched.step == result.step, f"result of step {result.step}, expected {launched.step}"
        outputs = self.take_outputs()
        sampled_index = 0
        token_start = 0
        for index, work in enumerate(launched.work):
            tokens: list[int] = []
            logprobs: tuple[TopLogprobs, ...] = ()
            if work.sampled:
                token_count = int(result.counts[sampled_index])
                tokens = result.token_ids[token_start : token_start + token_count].tolist()
                logprobs = _entries(result.logprobs.get(sampled_index))
                token_start += token_count
                sampled_index += 1
            if work.request.state is State.FINISHED:
                continue
            if index in result.failed:
                outputs.append(self._fail(work.request, result.failed[index], now))
                continue
            prompt = _prompt_entries(work, result.prompt_logprobs.get(index))
            output = self._accept(work, tokens, logprobs, prompt, now)
            if output is not None:
                outputs.append(output)
        self._free_duplicates()
        return outputs

    def fail_launched(self, message: str, now: float) -> list[TokenOutput]:
        """The oldest awaited step broke: its requests fail, and no prefix computed by it is trusted any more."""
        launched = self._launched.popleft()
        outputs = self.take_outputs()
        for work in launched.work:
            if work.request.state is not State.FINISHED:
                outputs.append(self._fail(work.request, message, now))
        self._free_duplicates()
        self.memory.forget()
        return outputs

    def _accept(
        self,
        work: Work,
        tokens: list[int],
        logprobs: tuple[TopLogprobs, ...],
        prompt_logprobs: tuple[TopLogprobs | None, ...],
        now: float,
    ) -> TokenOutput | None:
        """One sequence's share of a result; None when it has nothing to say yet."""
        request = work.request
        finish: FinishReason | None = None
        stop_token: int | None = None
        taken: list[int] = []
        for token in tokens:
            request.append(token)
            taken.append(token)
            finish, stop_token = self._end_after(request, token)
            if finish is not None:
                break
        if not work.sampled and request.complete and request.max_len == request.prompt_len:
            finish = FinishReason.LENGTH
        if taken:
            self._policy.on_token(request, len(taken), now)
        output = None
        if taken or finish is not None or prompt_logprobs:
            output = TokenOutput(
                request.request_id,
                tuple(taken),
                logprobs[: len(taken)],
                finish,
                stop_token,
                request.reused_len,
                prompt_logprobs,
            )
        if finish is not None:
            self._estimator.on_finish(request)
            self._close(request, now)
        return output

    def _end_after(self, request: Request, token: int) -> tuple[FinishReason | None, int | None]:
        """Whether `token`, just appended, ends the request; a stop token id that the caller gave is reported."""
        params = request.submit.params
        generated = request.valued_len - request.prompt_len
        if generated >= params.min_tokens:
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
            if token in self._eos_ids and not params.ignore_eos:
                return FinishReason.STOP, None
        if request.valued_len >= request.max_len:
            return FinishReason.LENGTH, None
        return None, None

    def _fail(self, request: Request, message: str, now: float) -> TokenOutput:
        self._close(request, now, trusted=False)
        return TokenOutput(request.request_id, finish=FinishReason.ERROR, error=("engine_error", message))

    def _finish(self, request: Request, reason: FinishReason, now: float) -> None:
        self._outputs.append(TokenOutput(request.request_id, finish=reason, cached_tokens=request.reused_len))
        self._close(request, now)

    def _close(self, request: Request, now: float, *, trusted: bool = True) -> None:
        """Take a request out of whatever state it is in and give back all it has."""
        if request.state is State.QUEUED:
            self._policy.remove(request)
        else:
            self._release(request, trusted=trusted)
            self._running.remove(request)
        request.move(State.FINISHED)
        self._policy.on_finish(request, now)
        del self._requests[request.request_id]

    def _preempt(self, request: Request, now: float) -> None:
        """Send a running request back to the queue; what it computed stays in the tree while there is room."""
        self._release(request, trusted=True)
        self._running.remove(request)
        request.move(State.QUEUED)
        request.num_preemptions += 1
        self.counters.num_preemptions += 1
        self._estimator.on_evict(request)
        self._policy.requeue(request, now)

    def _release(self, request: Request, *, trusted: bool) -> None:
        """Give back row, slots and tree reference. Later plans may reuse the slots: the device runs in order."""
        if trusted:
            self._share(request)
        self.memory.free(self._table[request.row, request.matched_len : request.computed_len].copy())
        if request.node is not None:
            self.memory.unlock(request.node)
        self._forget_row(request.row)
        self._free_rows.append(request.row)
        request.rewind()

    def _free_duplicates(self) -> None:
        """Free slots whose content the tree has elsewhere; not before the plan that writes to them is complete."""
        for slots in self._duplicates:
            self.memory.free(slots)
        self._duplicates.clear()

    def _forget_row(self, row: int) -> None:
        """Drop what the next plan would have said about a row that is gone."""
        self._patches = [p for p in self._patches if p.row != row]
        self._later_patches = [p for p in self._later_patches if p.row != row]
        self._opened = [o for o in self._opened if o.row != row]

    def check(self) -> None:
        """Assert the invariants of every request and of the memory, slot by slot (tests, and when idle)."""
        self.memory.check()
        for request in self._requests.values():
            request.check()
            assert (request.row == NO_ROW) == (request.state is State.QUEUED)
        private = [self._table[r.row, r.matched_len : r.computed_len] for r in self._running]
        held = np.concatenate([*private, np.empty(0, np.int32)])
        assert len(held) == len(np.unique(held)) == self.memory.ledger().held, "private slots do not add up"


def _wants_prompt_logprobs(work: Work) -> bool:
    """Whether this chunk predicts prompt tokens that have not been reported yet."""
    request = work.request
    wanted = request.submit.params.prompt_logprobs is not None
    return wanted and work.start < request.prompt_len and request.scored_len < request.prompt_len


def _entries(logprobs: Logprobs | None) -> tuple[TopLogprobs, ...]:
    """Log-probabilities of P positions as P messages."""
    if logprobs is None:
        return ()
    return tuple(
        TopLogprobs(
            float(logprobs.chosen[i]),
            int(logprobs.ranks[i]),
            logprobs.top_ids[i].astype(np.int32).tobytes(),
            logprobs.top_values[i].astype(np.float32).tobytes(),
        )
        for i in range(len(logprobs.chosen))
    )


def _prompt_entries(work: Work, logprobs: Logprobs | None) -> tuple[TopLogprobs | None, ...]:
    """Log-probabilities of prompt tokens not reported before; None stands for the first, which nothing predicts."""
    if logprobs is None:
        return ()
    request = work.request
    entries: list[TopLogprobs | None] = list(_entries(logprobs))
    first = work.start + 1
    if work.start == 0:
        entries.insert(0, None)
        first = 0
    fresh = entries[max(0, request.scored_len - first) :]
    request.scored_len = max(request.scored_len, first + len(entries))
    return tuple(fresh)
