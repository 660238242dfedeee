"""From a caller's prompt and parameters to Submit messages: every check that needs the model or its tokenizer.

Shared by the HTTP frontend and the offline API, so that both accept and refuse the same things in the same words.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from lightllm.errors import ContextLengthExceeded, InvalidRequest
from lightllm.protocol.messages import Submit, Terms, pack_ids
from lightllm.protocol.sampling_params import MAX_BAD_WORD_TOKENS, SamplingParams, check_token_ids
from lightllm.text.tokenizer import Tokenizer

SEED_RANGE = 1 << 64
DEFAULT_TERMS = Terms()
READ_CHARS = 1 << 20
"""Texts up to this length are tokenized whatever the context holds."""


class Intake:
    """Checks requests for one model. `vocab_size` ids and `max_model_len` tokens are its limits; `eos_ids` are those
    that the engine ends a request with."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, max_model_len: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len

    def check(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """How many tokens may follow `prompt`. Raises InvalidRequest or ContextLengthExceeded."""
        if not len(prompt):
            raise InvalidRequest("the prompt has no tokens; it needs at least 1", param="prompt")
        check_token_ids("prompt", prompt, self.vocab_size)
        params.check_for_model(self.vocab_size)
        wanted, room = params.max_tokens, self.max_model_len - len(prompt)
        if room < (1 if wanted is None else wanted):
            asks = "leaves no room for output" if wanted is None else f"and max_tokens of {wanted} ask for more"
            message = f"the context holds {self.max_model_len} tokens; a prompt of {len(prompt)} tokens {asks}"
            raise ContextLengthExceeded(message, param="prompt" if room < 1 else "max_tokens")
        max_tokens = room if wanted is None else wanted
        if params.min_tokens > max_tokens:
            message = f"min_tokens of {params.min_tokens} passes the {max_tokens} tokens that the context has left"
            raise InvalidRequest(message, param="min_tokens")
        return max_tokens

    def submits(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        request_ids: Iterator[int],
        arrival: float,
        *,
        terms: Terms = DEFAULT_TERMS,
    ) -> list[Submit]:
        """One Submit for each of `params.n` choices. Without a seed each draws its own; with one, choice i uses
        seed + i modulo 2^64. Raises InvalidRequest or ContextLengthExceeded."""
        max_tokens = self.check(prompt, params)
        bad_words = self.bad_word_ids(params.bad_words)
        self._check_choice(params, bad_words)
        single = params if params.n == 1 else msgspec.structs.replace(params, n=1)
        packed = pack_ids(prompt)
        given = msgspec.structs.asdict(terms)
        return [
            Submit(
                request_id=next(request_ids),
                prompt=packed,
                params=single,
                max_tokens=max_tokens,
                seed=_seed(params.seed, turn),
                arrival=arrival,
                bad_words=bad_words,
                **given,
            )
            for turn in range(params.n)
        ]

    def _check_choice(self, params: SamplingParams, bad_words: Sequence[tuple[int, ...]]) -> None:
        """Raise InvalidRequest if what is allowed is, or may come to be, also forbidden: no token could be chosen.

        A bad word of several tokens forbids its last one in places; it counts if all of them are allowed.
        """
        if params.allowed_token_ids is None:
            return
        allowed = set(params.allowed_token_ids)
        forbidden = {word[-1] for word in bad_words if len(word) == 1 or allowed.issuperset(word)}
        if params.min_tokens > 0:
            forbidden |= self._eos_ids.union(params.stop_token_ids)
        if forbidden.issuperset(params.allowed_token_ids):
            message = "allowed_token_ids leaves no token to choose: bad_words or min_tokens forbid all of them"
            raise InvalidRequest(message, param="allowed_token_ids")

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token id sequences of each word: after a line break, as a text of its own and after a space, as far as they
        differ; spaces in front of it do not count. Raises InvalidRequest."""
        found: dict[tuple[int, ...], None] = {}
        line_break = self._read("\n") if words else ()
        for word in words:
            text = word.lstrip(" ")
            alone = self._read(text)
            if not alone or len(alone) > MAX_BAD_WORD_TOKENS:
                shown = f"bad_words entry {word[:40]!r} has {len(alone)} tokens"
                raise InvalidRequest(f"{shown}; allowed are 1 to {MAX_BAD_WORD_TOKENS}", param="bad_words")
            if len(alone) > 1 and self._tokenizer.token_text(alone[0]) == " ":
                alone = alone[1:]  # the tokenizer put a space in front, which within a text need not be there
            ways: list[tuple[int, ...]] = []
            after_break = self._read("\n" + text)
            if after_break[: len(line_break)] != line_break:
                after_break = ()  # the two share a token
            for ids in (after_break[len(line_break) :], alone, self._read(" " + text)):
                if 0 < len(ids) <= MAX_BAD_WORD_TOKENS and not any(ids[-len(way) :] == way for way in ways):
                    ways.append(ids)
            found |= dict.fromkeys(ways)
        return tuple(found)

    def _read(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def check_text_len(text: str, tokenizer: Tokenizer, max_model_len: int | None) -> None:
    """Raise ContextLengthExceeded for a text whose tokens cannot fit: that is cheap to know, its tokens are not."""
    limit = max(READ_CHARS, (max_model_len or 0) * tokenizer.longest_entry)
    if len(text) > limit:
        message = f"a text of {len(text)} characters is too long; at most {limit} are read"
        if max_model_len is not None:
            message += f", as the context holds {max_model_len} tokens"
        raise ContextLengthExceeded(message, param="prompt")


def _seed(seed: int | None, turn: int) -> int:
    return secrets.randbits(63) if seed is None else (seed + turn) % SEED_RANGE
