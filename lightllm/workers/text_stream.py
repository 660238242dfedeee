"""The text of one request: ids in, certain text out, ended by the engine or by a stop string.

    ids ──Detokenizer──▶ text ──StopMatcher──▶ text that no later token can change ──▶ TextOutput

It gathers what several steps gave until it is asked for. It does not know processes or other requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightllm.protocol.messages import ErrorParts, FinishReason, Open, TextOutput, TokenOutput, TopLogprobs, unpack_ids
from lightllm.text.detokenizer import Detokenizer
from lightllm.text.stops import StopMatcher
from lightllm.text.tokenizer import Tokenizer


class TextStream:
    """State of one request between its `Open` and its terminal output.

    Ids are never held back, only text is: the ids of a stop string belong to the output, those after it do not, and
    log-probabilities follow their ids. The text of the first `min_tokens` tokens is not searched for stop strings. The
    token that ended the request shows no text, unless the caller wants to see what stopped it.
    """

    __slots__ = (
        "_cached",
        "_detokenizer",
        "_eos_ids",
        "_error",
        "_finish",
        "_ids",
        "_logprobs",
        "_matcher",
        "_prompt_logprobs",
        "_push",
        "_shows_stop",
        "_stop_reason",
        "_text",
        "_unmatched",
        "cut_short",
        "request_id",
    )

    def __init__(self, tokenizer: Tokenizer, opened: Open) -> None:
        """Raises InvalidRequest for a stop string that is none, ValueError for a damaged prompt tail."""
        self.request_id = opened.request_id
        self.cut_short = False
        """A stop string ended the request and the engine does not know yet."""
        self._detokenizer: Detokenizer | None = None
        self._push = _no_text
        if opened.detokenize:
            tail = unpack_ids(opened.prompt_tail).tolist()
            skip, spaces = opened.skip_special_tokens, opened.spaces_between_special_tokens
            self._detokenizer = Detokenizer(tokenizer, tail, skip, spaces)
            self._push = self._detokenizer.push
        self._matcher = StopMatcher(opened.stop, opened.include_stop) if opened.stop else None
        self._unmatched = opened.min_tokens
        self._shows_stop = opened.include_stop
        self._eos_ids = tokenizer.eos_ids if opened.skip_special_tokens else frozenset()
        self._finish: FinishReason | None = None
        self._stop_reason: str | int | None = None
        self._error: ErrorParts | None = None
        self._cached = 0
        self._text = ""
        self._ids: tuple[int, ...] = ()
        self._logprobs: tuple[TopLogprobs, ...] = ()
        self._prompt_logprobs: tuple[TopLogprobs | None, ...] = ()

    @property
    def ended(self) -> bool:
        """Nothing may follow; what was gathered is still to be given."""
        return self._finish is not None

    def take(self, output: TokenOutput) -> None:
        """Add what one step said."""
        if output.cached_tokens:
            self._cached = output.cached_tokens
        if output.prompt_logprobs:
            self._prompt_logprobs += output.prompt_logprobs
        if output.error is not None:
            self.fail(output.error)
            return
        ids, used = output.token_ids, len(output.token_ids)
        if output.finish is None and self._matcher is None:
            self._text += self._push(ids)
        else:
            used = self._take_last_or_matched(output)
        if used:
            self._ids = self._ids + ids[:used] if self._ids else ids[:used]
            if output.logprobs:
                self._logprobs += output.logprobs[:used]

    def fail(self, error: ErrorParts) -> None:
        """End with an error."""
        self._finish, self._error = FinishReason.ERROR, error

    def give(self) -> TextOutput:
        """Everything gathered since the last call."""
        output = TextOutput(
            self.request_id,
            self._text,
            self._ids,
            self._logprobs,
            self._finish,
            self._stop_reason,
            self._cached,
            self._prompt_logprobs,
            self._error,
        )
        self._text = ""
        self._ids = self._logprobs = self._prompt_logprobs = ()
        return output

    def _take_last_or_matched(self, output: TokenOutput) -> int:
        """Text of an output that ends the request or whose text is searched; how many of its ids count."""
        ids = output.token_ids
        shown = ids[:-1] if self._hides_last(output) else ids
        used = self._match(shown)
        hit = self._matcher.hit if self._matcher is not None else None
        if hit is None:
            used = len(ids)
            hit = self._flush() if output.finish is not None else None
        if hit is not None:
            self.cut_short = output.finish is None
            self._finish, self._stop_reason = FinishReason.STOP, hit
        elif output.finish is not None:
            self._finish, self._stop_reason = output.finish, output.stop_token
        return used

    def _match(self, ids: Sequence[int]) -> int:
        """Adds the text of `ids` token by token, up to a stop string; the number of ids that were taken."""
        matcher = self._matcher
        if matcher is None:
            self._text += self._push(ids)
            return len(ids)
        for count, token_id in enumerate(ids, 1):
            text = self._push((token_id,))
            if self._unmatched > 0:
                self._unmatched -= 1
                self._text += text
                continue
            shown, hit = matcher.push(text)
            self._text += shown
            if hit is not None:
                return count
        return len(ids)

    def _flush(self) -> str | None:
        """The text ended: add what was held back; the stop string found in it, if any."""
        held = self._detokenizer.flush() if self._detokenizer is not None else ""
        if self._matcher is None:
            self._text += held
            return None
        shown, hit = self._matcher.push(held) if self._unmatched <= 0 else (held, None)
        self._text += shown + self._matcher.flush()
        return hit

    def _hides_last(self, output: TokenOutput) -> bool:
        if output.finish is not FinishReason.STOP or not output.token_ids:
            return False
        return not self._shows_stop or output.token_ids[-1] in self._eos_ids


def _no_text(ids: Sequence[int]) -> str:
    return ""
