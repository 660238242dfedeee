"""Log-probabilities in the shapes of the dialect: per token for chats, lists side by side for completions.

Tokens are shown as text (part of a character as U+FFFD, with its true bytes beside it) or as "token_id:123". Minus
infinity is no JSON number; it becomes -9999.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lightllm.protocol.messages import TextOutput, TopLogprobs
from lightllm.server.openai.objects import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from lightllm.text.tokenizer import Tokenizer

LOWEST: Final = -9999.0


def finite(logprob: float) -> float:
    """At least -9999; NaN too."""
    return logprob if logprob >= LOWEST else LOWEST


class TokenNames:
    """How tokens are shown in one answer."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self.tokenizer = tokenizer
        self._as_ids = as_ids

    def __call__(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self.tokenizer.token_text(token_id)

    def top(self, token_id: int, logprob: float) -> TopLogprob:
        """A token with its bytes."""
        data = list(self.tokenizer.token_bytes(token_id))
        return TopLogprob(token=self(token_id), logprob=finite(logprob), bytes=data)


def chat_logprobs(outputs: Sequence[TextOutput], num_top: int, names: TokenNames) -> ChatLogprobs:
    """The tokens of these outputs with up to `num_top` alternatives each."""
    content = []
    for output in outputs:
        for token_id, found in zip(output.token_ids, output.logprobs, strict=False):
            chosen = names.top(token_id, found.logprob)
            top = [names.top(*pair) for pair in found.pairs()[:num_top]]
            content.append(
                TokenLogprob(token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=top)
            )
    return ChatLogprobs(content=content)


class CompletionLogprobsWriter:
    """Collects the tokens of one choice; `take` gives those since the last time.

    A text offset counts the characters that begin before the token, so it is right inside a character too.
    """

    def __init__(self, names: TokenNames, num_top: int, hide_special: bool) -> None:
        self._names = names
        self._num_top = num_top
        self._hidden = names.tokenizer.special_ids if hide_special else frozenset()
        self._offset = 0
        self._leading = names.tokenizer.vocabulary.rule.strip_left  # spaces that the start of a text still loses
        self._new = _empty()

    def add(self, token_ids: Sequence[int], found: Sequence[TopLogprobs | None], echo: str | None = None) -> None:
        """Tokens and what was found at their positions; None has no log-probability (the first of a prompt).

        `echo` is the text shown for a prompt's tokens: special ones count where they stand in it.
        """
        for token_id, entry in zip(token_ids, found, strict=False):
            new = self._new
            new.tokens.append(self._names(token_id))
            new.token_logprobs.append(None if entry is None else finite(entry.logprob))
            new.top_logprobs.append(None if entry is None else self._top(token_id, entry))
            new.text_offset.append(self._offset)
            if not self._is_hidden(token_id, echo):
                data = self._names.tokenizer.token_bytes(token_id)
                if echo is not None and self._leading:
                    data = self._strip_start(data)
                self._offset += sum(byte & 0xC0 != 0x80 for byte in data)

    def _is_hidden(self, token_id: int, echo: str | None) -> bool:
        if echo is None:
            return token_id in self._hidden
        tokenizer = self._names.tokenizer
        return token_id in tokenizer.special_ids and not echo.startswith(tokenizer.token_text(token_id), self._offset)

    def _strip_start(self, data: bytes) -> bytes:
        """What the start of a text shows of these bytes, as the tokenizer decodes it."""
        bare = data.lstrip(b" ")
        dropped = min(len(data) - len(bare), self._leading)
        self._leading = self._leading - dropped if dropped == len(data) else 0
        return data[dropped:]

    def take(self) -> CompletionLogprobs:
        new, self._new = self._new, _empty()
        return new

    def _top(self, token_id: int, entry: TopLogprobs) -> dict[str, float]:
        """The likeliest tokens and the chosen one; of tokens that look alike the likeliest is shown."""
        top: dict[str, float] = {}
        for other, logprob in entry.pairs()[: self._num_top]:
            top.setdefault(self._names(other), finite(logprob))
        top.setdefault(self._names(token_id), finite(entry.logprob))
        return top


def prompt_logprobs(
    prompt: Sequence[int], found: Sequence[TopLogprobs | None], num_top: int | None, names: TokenNames
) -> PromptLogprobs:
    """vLLM's extension: for each prompt position a map from token id to its entry, null for the first.

    num_top: likeliest ids to show beside the prompt's own; None shows all that were found.
    """
    return [
        None if entry is None else _position(token_id, entry, num_top, names)
        for token_id, entry in zip(prompt, found, strict=False)
    ]


def _position(token_id: int, entry: TopLogprobs, num_top: int | None, names: TokenNames) -> dict[str, PromptLogprob]:
    shown = {str(token_id): _prompt_logprob(token_id, entry.logprob, entry.rank, names)}
    for rank, (other, logprob) in enumerate(entry.pairs()[:num_top]):
        if other != token_id:
            shown[str(other)] = _prompt_logprob(other, logprob, rank, names)
    return shown


def _prompt_logprob(token_id: int, logprob: float, rank: int, names: TokenNames) -> PromptLogprob:
    return PromptLogprob(logprob=finite(logprob), rank=rank + 1, decoded_token=names.tokenizer.token_text(token_id))


def _empty() -> CompletionLogprobs:
    return CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
