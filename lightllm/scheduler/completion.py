"""From a step's result to outputs: tokens get their values, requests end.

Most results hold one token for each sampled sequence and nothing else; they are taken in by array operations and a
short loop. Whatever has more to say (log-probabilities, several tokens, failures) goes sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightllm.protocol.messages import FinishReason, TokenOutput, TopLogprobs
from lightllm.protocol.plan import StepResult
from lightllm.scheduler.draft import Launched
from lightllm.scheduler.lengths import Lengths
from lightllm.scheduler.policies import Policy
from lightllm.scheduler.request import Request
from lightllm.scheduler.results import logprob_entries, prompt_entries
from lightllm.scheduler.roster import Roster


class Completion:
    """`eos_ids` end a request unless it ignores them."""

    def __init__(self, roster: Roster, lengths: Lengths, policy: Policy, eos_ids: tuple[int, ...]) -> None:
        self._roster = roster
        self._lengths = lengths
        self._policy = policy
        self._eos_ids = frozenset(eos_ids)
        self._eos = np.array(eos_ids, np.int32)

    def take(self, launched: Launched, result: StepResult, now: float) -> list[TokenOutput]:
        """What a result gives the requests that are still there."""
        special = result.logprobs or result.prompt_logprobs or result.failed
        if special or not bool((result.counts == 1).all()):
            return self._take_any(launched, result, now)
        return self._take_plain(launched, result, now)

    def fail(self, request: Request, message: str, now: float) -> TokenOutput:
        """A request ends because its step broke; what it computed is not trusted."""
        self._roster.close(request, now, trusted=False)
        return TokenOutput(request.request_id, finish=FinishReason.ERROR, error=("engine_error", message))

    def _take_plain(self, launched: Launched, result: StepResult, now: float) -> list[TokenOutput]:
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
        requests: list[Request] = lengths.owner[indices].tolist()
        self._policy.on_tokens(requests, now)
        numbers, reused = lengths.request_id[indices].tolist(), lengths.reused[indices].tolist()
        given = zip(numbers, tokens.tolist(), reused, strict=True)
        spoken = [TokenOutput(number, (token,), (), None, None, hit) for number, token, hit in given]
        for request, position, output in zip(requests, valued.tolist(), spoken, strict=True):
            request.buffer[position] = output.token_ids[0]
        for place in np.flatnonzero(valued == lengths.prompt[indices]).tolist():
            self._roster.begin_output(requests[place], now)
        for place in np.flatnonzero(may_end).tolist():
            request, (token,) = requests[place], spoken[place].token_ids
            spoken[place] = self._say(request, (token,), *self._end_after(request, token), now=now)
        return outputs + spoken

    def _take_any(self, launched: Launched, result: StepResult, now: float) -> list[TokenOutput]:
        outputs: list[TokenOutput] = []
        alive = (self._lengths.serial[launched.indices] == launched.serials).tolist()
        bounds = np.concatenate([[0], np.cumsum(result.counts)]).tolist()
        num_sampled = 0
        for place, request in enumerate(launched.requests):
            tokens: list[int] = []
            logprobs: tuple[TopLogprobs, ...] = ()
            if launched.sampled[place]:
                tokens = result.token_ids[bounds[num_sampled] : bounds[num_sampled + 1]].tolist()
                logprobs = logprob_entries(result.logprobs.get(num_sampled))
                num_sampled += 1
            if not alive[place]:
                continue
            if place in result.failed:
                outputs.append(self.fail(request, result.failed[place], now))
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
            if request.valued_len == request.prompt_len:
                self._roster.begin_output(request, now)
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
            self._roster.close(request, now, by_itself=True)
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
