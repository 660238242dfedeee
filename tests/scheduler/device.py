"""A model of an engine at the level of slots: it knows what every slot holds and checks every read.

The KV of a token depends on all tokens before it, so a slot's content is a hash of the whole prefix (and of the
cache salt, which must never be crossed). A step told to break writes garbage; whoever reads garbage writes garbage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from lightllm.config.settings import SchedulerSettings
from lightllm.memory.token_memory import TokenMemory
from lightllm.protocol.messages import FinishReason, Submit, TokenOutput, pack_ids
from lightllm.protocol.plan import Logprobs, StepPlan, StepResult
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.scheduler.estimators import make_estimator
from lightllm.scheduler.policies import make_policy
from lightllm.scheduler.scheduler import Scheduler

EOS = 1
VOCABULARY = 37
GARBAGE = -1


def chain(seed: int, tokens: Sequence[int]) -> list[int]:
    """Hash of every prefix of `tokens`."""
    hashes = []
    for token in tokens:
        seed = hash((seed, token)) & 0xFFFFFFFF
        hashes.append(seed)
    return hashes


def next_token(prefix_hash: int) -> int:
    """The model: the token after a prefix."""
    return prefix_hash % VOCABULARY + 1


def expected_output(submit: Submit) -> list[int]:
    """What a request must generate, computed alone."""
    tokens = np.frombuffer(submit.prompt, np.int32).tolist()
    seed = chain(crc32(submit.cache_salt.encode()), tokens)[-1]
    output: list[int] = []
    while len(output) < submit.max_tokens:
        token = next_token(seed)
        output.append(token)
        seed = hash((seed, token)) & 0xFFFFFFFF
        ended = (token == EOS and not submit.params.ignore_eos) or token in submit.params.stop_token_ids
        if ended and len(output) >= submit.params.min_tokens:
            break
    return output


@dataclass
class Row:
    """What the device keeps of an opened row."""

    request_id: int
    tokens: list[int]
    hashes: list[int]
    salt: str


@dataclass
class Harness:
    """A scheduler, the device, and everything that came out."""

    scheduler: Scheduler
    submits: dict[int, Submit] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    scores: dict[int, int] = field(default_factory=dict)
    ends: dict[int, TokenOutput] = field(default_factory=dict)
    flight: deque[tuple[StepResult, bool]] = field(default_factory=deque)
    rows: dict[int, Row] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    table: dict[tuple[int, int], int] = field(default_factory=dict)
    computed_tokens: int = 0
    num_operations: int = 0
    now: float = 0.0
    garbage_may_be_read: bool = False

    def submit(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "", **rest: object) -> int:
        """Queue a request; `rest` are fields of SamplingParams or of Submit."""
        request_id = len(self.submits)
        names = set(Submit.__struct_fields__)
        own = {name: value for name, value in rest.items() if name in names}
        params = SamplingParams(max_tokens=max_tokens, **{k: v for k, v in rest.items() if k not in names})
        submit = Submit(request_id, pack_ids(prompt), params, max_tokens, request_id, self.now, cache_salt=salt, **own)
        self.submits[request_id] = submit
        self.scheduler.submit(submit, self.now)
        self._checked()
        return request_id

    def abort(self, request_id: int) -> None:
        self.scheduler.abort(request_id, self.now)
        self._checked()

    def launch(self, *, breaks: bool = False, fails: bool = False) -> StepPlan | None:
        """Plan a step and run it on the device; `breaks` loses the whole step, `fails` its first sequence."""
        self.now += 1.0
        plan = self.scheduler.schedule(self.now)
        self._checked()
        if plan is not None:
            failed = {0: "told to fail"} if fails else {}
            self.garbage_may_be_read |= breaks
            self.flight.append((self._run(plan, breaks, failed), breaks))
        return plan

    def land(self) -> list[TokenOutput]:
        """Hand the oldest result to the scheduler."""
        result, broke = self.flight.popleft()
        if broke:
            outputs = self.scheduler.fail_launched("the step broke", self.now)
            self.garbage_may_be_read = any(later for _, later in self.flight)
        else:
            outputs = self.scheduler.apply(result, self.now)
        self._take(outputs)
        self._checked()
        return outputs

    def step(self) -> StepPlan | None:
        """One step without overlap."""
        plan = self.launch()
        if self.flight:
            self.land()
        return plan

    def drain(self, depth: int = 0) -> None:
        """Run until nothing is left."""
        while self.scheduler.has_work:
            plan = self.launch()
            assert plan is not None or self.flight, "there is work, but nothing is launched and nothing awaited"
            while self.flight and (plan is None or len(self.flight) > depth):
                self.land()
        self._take(self.scheduler.take_outputs())

    def assert_outputs(self) -> None:
        """Every request ended exactly once; what ended by itself has the output it would have alone."""
        assert self.ends.keys() == self.submits.keys()
        for request_id, submit in self.submits.items():
            reason = self.ends[request_id].finish
            got, expected = self.tokens.get(request_id, []), expected_output(submit)
            if reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert got == expected, f"request {request_id}"
                if submit.params.prompt_logprobs is not None:
                    assert self.scores[request_id] == len(submit.prompt) // 4
            else:
                assert got == expected[: len(got)], f"request {request_id}"

    def _checked(self) -> None:
        self.num_operations += 1
        self.scheduler.check()

    def _take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            assert output.request_id not in self.ends, "a word after the last"
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            scores = self.scores.get(output.request_id, 0)
            self.scores[output.request_id] = scores + len(output.prompt_logprobs)
            if output.finish is not None:
                self.ends[output.request_id] = output

    def _run(self, plan: StepPlan, breaks: bool, failed: dict[int, str]) -> StepResult:
        self._prepare(plan)
        assert len(np.unique(plan.slots)) == len(plan.slots), "a slot is written twice in one step"
        assert len(np.unique(plan.rows)) == len(plan.rows), "a row appears twice in one step"
        bounds = np.concatenate([[0], np.cumsum(plan.lens)]).tolist()
        sequences = list(zip(plan.rows.tolist(), plan.starts.tolist(), plan.lens.tolist(), strict=True))
        for place, (row_index, start, _) in enumerate(sequences):
            row = self.rows[row_index]
            for offset, slot in enumerate(plan.slots[bounds[place] : bounds[place + 1]].tolist()):
                self.table[row_index, start + offset] = slot
                self.slots[slot] = GARBAGE if breaks else row.hashes[start + offset]
        self.computed_tokens += plan.num_tokens
        sampled: list[int] = []
        scores: dict[int, Logprobs] = {}
        for place, (row_index, start, length) in enumerate(sequences):
            clean = self._read(row_index, start + length)
            if not clean:
                for slot in plan.slots[bounds[place] : bounds[place + 1]].tolist():
                    self.slots[slot] = GARBAGE
            if plan.prompt_logprobs[place]:
                scores[place] = self._score(self.rows[row_index], start, length)
            if plan.sampled[place]:
                sampled.append(self._sample(self.rows[row_index], start + length))
        counts = np.ones(len(sampled), np.int32)
        return StepResult(plan.step, np.array(sampled, np.int32), counts, {}, scores, failed)

    def _prepare(self, plan: StepPlan) -> None:
        for opened in plan.opened:
            salt = self.submits[opened.seed].cache_salt
            tokens = opened.tokens.tolist()
            self.rows[opened.row] = Row(opened.seed, tokens, chain(crc32(salt.encode()), tokens), salt)
        for patch in plan.patches:
            for offset, slot in enumerate(patch.slots.tolist()):
                self.table[patch.row, patch.start + offset] = slot

    def _read(self, row_index: int, length: int) -> bool:
        """Attention over a prefix: every slot holds what it should; False where garbage was read."""
        row = self.rows[row_index]
        found = [self.slots[self.table[row_index, position]] for position in range(length)]
        if found == row.hashes[:length]:
            return True
        assert self.garbage_may_be_read and GARBAGE in found, f"request {row.request_id} reads what is not its own"
        return False

    def _sample(self, row: Row, length: int) -> int:
        assert len(row.tokens) == length, "the sampled token does not follow the last known one"
        token = next_token(row.hashes[-1])
        row.tokens.append(token)
        row.hashes.append(hash((row.hashes[-1], token)) & 0xFFFFFFFF)
        return token

    def _score(self, row: Row, start: int, length: int) -> Logprobs:
        prompt_len = len(self.submits[row.request_id].prompt) // 4
        count = min(start + length, prompt_len - 1) - start
        zeros = np.zeros(max(count, 0), np.float32)
        ranks = np.zeros(max(count, 0), np.int32)
        return Logprobs(zeros, ranks, ranks[:, None], zeros[:, None])


def make_harness(
    total: int,
    *,
    max_len: int = 64,
    shareable_len: int | None = None,
    max_running: int = 8,
    max_step_tokens: int = 32,
    **settings: object,
) -> Harness:
    chosen = SchedulerSettings(max_running=max_running, max_step_tokens=max_step_tokens, **settings)
    memory = TokenMemory(total, prefix_cache=chosen.prefix_cache, eviction=chosen.prefix_eviction)
    policy, estimator = make_policy(chosen), make_estimator(chosen)
    longest = min(max_len, total)
    scheduler = Scheduler(
        chosen, memory, policy, estimator, max_len=longest, eos_ids=(EOS,), shareable_len=shareable_len
    )
    return Harness(scheduler)
