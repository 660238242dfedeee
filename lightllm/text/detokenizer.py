"""Token ids to text while they arrive: only text that no later token can change leaves `push`.

One Detokenizer serves one request and is chosen by the vocabulary's rule:

    bytes     id -> bytes by table, then an incremental UTF-8 decoder
    pieces    id -> text by table; a run of raw bytes waits for its end, as one bad byte spoils all of it
    windowed  `tokenizers` decodes a short window twice (method: Hugging Face text-generation-inference)

The pushes and the flush of a request join to `Tokenizer.decode` of its ids. This module knows no stop
strings.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Protocol

from lightllm.text.tokenizer import Tokenizer

__all__ = ["Detokenizer"]

REPLACEMENT = "\ufffd"
WINDOW = 6  # prompt tokens that a windowed decode sees before the first output token


class _Stream(Protocol):
    def push(self, ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


class Detokenizer:
    """Incremental text of one request.

    prompt_tail: the last few ids before the output (six are plenty). They give no text; they only decide
    whether the
        output starts a text, where SentencePiece vocabularies drop a leading space. Empty: the output starts
        a text.
    spaces_between_special_tokens: False drops the space that some decoders put between two special tokens.

    Ids that no token has (a model's padding rows) give no text.
    """

    __slots__ = ("_stream", "push")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tail: Sequence[int] = (),
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        kind = tokenizer.vocabulary.rule.kind
        self._stream: _Stream
        if kind == "bytes":
            self._stream = _ByteStream(tokenizer, skip_special_tokens)
        elif kind == "pieces":
            self._stream = _PieceStream(tokenizer, prompt_tail, skip_special_tokens)
        else:
            self._stream = _WindowStream(tokenizer, prompt_tail, skip_special_tokens, spaces_between_special_tokens)
        self.push = self._stream.push
        """Take the next ids, return the text that is now certain; never part of a character."""

    def flush(self) -> str:
        """End the text: what was held back, with U+FFFD for bytes that never became a character."""
        return self._stream.flush()


class _ByteStream:
    """Byte-level vocabularies. State: the bytes of an unfinished character, at most three."""

    __slots__ = ("_held", "_table")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        vocabulary = tokenizer.vocabulary
        self._table = vocabulary.visible_byte_table if skip_special_tokens else vocabulary.byte_table
        self._held = b""

    def push(self, ids: Sequence[int]) -> str:
        table = self._table
        try:
            data = table[ids[0]] if len(ids) == 1 else b"".join([table[token_id] for token_id in ids])
        except IndexError:
            data = b"".join([table[token_id] for token_id in ids if token_id < len(table)])
        if self._held:
            data = self._held + data
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:] if used < len(data) else b""
        return text

    def flush(self) -> str:
        held, self._held = self._held, b""
        return held.decode(errors="replace")


class _PieceStream:
    """SentencePiece vocabularies. State: the raw bytes since the last text, what the start still drops."""

    __slots__ = ("_first", "_run", "_strip", "_table", "_vocabulary")

    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int], skip_special_tokens: bool) -> None:
        vocabulary = tokenizer.vocabulary
        self._vocabulary = vocabulary
        self._table = vocabulary.visible_piece_table if skip_special_tokens else vocabulary.piece_table
        self._first = vocabulary.rule.strip_first_piece
        self._strip = vocabulary.rule.strip_left
        self._run = bytearray()
        self.push(prompt_tail)
        self.flush()

    def push(self, ids: Sequence[int]) -> str:
        if self._first:
            return self._push_first(ids)
        table, run = self._table, self._run
        parts: list[str] = []
        for token_id in ids:
            piece = table[token_id] if token_id < len(table) else ""
            if isinstance(piece, int):
                run.append(piece)
            elif piece:
                if run:
                    parts.append(_decode_run(run))
                parts.append(piece)
        text = "".join(parts)
        return self._strip_start(text) if self._strip else text

    def flush(self) -> str:
        text = _decode_run(self._run)
        return self._strip_start(text) if self._strip else text

    def _push_first(self, ids: Sequence[int]) -> str:
        """The Metaspace decoder drops every space marker of the first entry that is shown."""
        for position, token_id in enumerate(ids):
            if token_id < len(self._table) and self._table[token_id] != "":
                self._first = False
                return self._vocabulary.first_piece(token_id) + self.push(ids[position + 1 :])
        return ""

    def _strip_start(self, text: str) -> str:
        """Drop up to `strip` spaces from the start of the whole text, however it was cut."""
        if not text:
            return text
        bare = text.lstrip(" ")
        dropped = min(len(text) - len(bare), self._strip)
        self._strip = self._strip - dropped if dropped == len(text) else 0
        return text[dropped:]


def _decode_run(run: bytearray) -> str:
    """Empty the run: its text, or a U+FFFD for each byte if any part is no UTF-8, as ByteFallback does."""
    try:
        text = run.decode()
    except UnicodeDecodeError:
        text = REPLACEMENT * len(run)
    run.clear()
    return text


class _WindowStream:
    """Any other decoder. State: the ids of the window, and how many of them have given their text."""

    __slots__ = ("_given", "_ids", "_last_special", "_skip", "_spaces", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int], skip: bool, spaces: bool) -> None:
        self._tokenizer = tokenizer
        self._ids = [token_id for token_id in prompt_tail[-WINDOW:] if token_id in tokenizer.vocabulary]
        self._given = len(self._ids)
        self._skip = skip
        self._spaces = spaces
        self._last_special = False

    def push(self, ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in ids if token_id in self._tokenizer.vocabulary])

    def flush(self) -> str:
        return self._advance(self._text())

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._text()
        text = "" if text.endswith(REPLACEMENT) else self._advance(text)
        special = token_id in self._tokenizer.special_ids
        if special and self._last_special and not self._spaces:
            text = text.lstrip(" ")
        self._last_special = special
        return text

    def _text(self) -> str:
        """The text after the given part of the window."""
        tokenizer, skip = self._tokenizer, self._skip
        given = tokenizer.decode(self._ids[: self._given], skip)
        return tokenizer.decode(self._ids, skip)[len(given) :]

    def _advance(self, text: str) -> str:
        """Give `text` and move the window, unless there is nothing to give."""
        if text:
            del self._ids[: self._given]
            self._given = len(self._ids)
        return text
