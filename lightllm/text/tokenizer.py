"""Text to token ids and back, from a Hugging Face style directory.

It gives what Transformers' fast tokenizers give for the same directory: `tokenizer.json` decides everything,
and `tokenizer_config.json` only names special tokens, adds missing ones and carries the chat template. As in
Transformers 5, `add_bos_token` and `add_eos_token` in tokenizer_config.json change nothing once there is a
tokenizer.json: its post-processor is the truth. This module knows no requests, no streams and no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from lightllm.errors import CheckpointError, InvalidRequest
from lightllm.text.checkpoint import TextFiles, read_text_files
from lightllm.text.vocabulary import Vocabulary

__all__ = ["Tokenizer"]

CLEANUPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)  # what Transformers' clean_up_tokenization does, in its order


class Tokenizer:
    """A tokenizer with its tables. Immutable after loading; safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer, files: TextFiles) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = files.split_special_tokens
        _add_tokens(backend, files)
        self._backend = backend
        self._files = files
        self._cleans_up = files.clean_up_spaces and type(backend.model).__name__ != "BPE"
        self.vocabulary = Vocabulary.from_backend(backend)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Load the tokenizer of a model directory.

        Raises CheckpointError that names the directory and the file at fault.
        """
        files = read_text_files(Path(directory))
        path = Path(directory) / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer that `tokenizers` can read: {error}") from error
        return cls(backend, files)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; `add_special_tokens` applies the post-processor (a leading BOS, for instance).

        Raises InvalidRequest for text that is not valid Unicode.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            _refuse_text(text, "text")
            raise
        return ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for each text, in parallel threads."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            for index, text in enumerate(texts):
                _refuse_text(text, f"text[{index}]")
            raise
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of a whole run of ids; bytes that are no UTF-8 become U+FFFD.

        Raises InvalidRequest that names an id outside the vocabulary.
        """
        self._check_ids(ids)
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self._cleans_up:
            for pattern, content in CLEANUPS:
                text = text.replace(pattern, content)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; none for an id that no token has."""
        kind = self.vocabulary.rule.kind
        if token_id not in self.vocabulary:
            return b""
        if kind == "bytes":
            return self.vocabulary.byte_table[token_id]
        if kind == "pieces":
            piece = self.vocabulary.piece_table[token_id]
            return piece.encode() if isinstance(piece, str) else bytes((piece,))
        return self.decode([token_id], skip_special_tokens=False).encode()

    def token_text(self, token_id: int) -> str:
        """The text of one token as people read it; part of a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_to_id(self, token: str) -> int | None:
        """The id of a vocabulary entry written as in tokenizer.json, or None."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    @cached_property
    def vocab_size(self) -> int:
        """Number of entries, added tokens included (`len(tokenizer)` in Transformers)."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def longest_entry(self) -> int:
        """Characters of the longest vocabulary entry: no token of a text has more."""
        return max((len(entry) for entry in self.vocabulary.contents if entry is not None), default=1)

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a sequence, if one is named."""
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a sequence, if one is named."""
        return self._special_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token, if one is named."""
        return self._special_id("pad_token")

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a sequence: `eos_id` and those of generation_config.json."""
        named = () if self.eos_id is None else (self.eos_id,)
        return frozenset((*named, *self._files.generation_eos_ids))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` hides."""
        return self.vocabulary.special_ids

    @property
    def special_tokens(self) -> dict[str, str]:
        """Named special tokens (`bos_token`, `eos_token`, ...), the names that a chat template sees."""
        return {name: token.content for name, token in self._files.named_tokens.items()}

    @property
    def chat_template(self) -> str | None:
        """Source of the default chat template, if the directory has one."""
        return self._files.chat_templates.get("default")

    @property
    def chat_templates(self) -> dict[str, str]:
        """Every chat template by name; `default` and, in some checkpoints, `tool_use`."""
        return dict(self._files.chat_templates)

    def info(self) -> dict[str, Any]:
        """What a tokenizer_info route answers: special tokens, sizes and the chat template."""
        tokens: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"))
        return {
            **tokens,
            **self.special_tokens,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
            "eos_token_ids": sorted(self.eos_ids),
            "pad_token_id": self.pad_id,
            "vocab_size": self.vocab_size,
            "special_token_ids": sorted(self.special_ids),
            "decoder": self.vocabulary.rule.kind,
            "chat_template": self.chat_template,
        }

    def _special_id(self, name: str) -> int | None:
        token = self._files.named_tokens.get(name)
        return None if token is None else self.token_to_id(token.content)

    def _check_ids(self, ids: Sequence[int]) -> None:
        table = self.vocabulary
        integers = set(map(type, ids)) <= {int}
        if not ids or (integers and table.is_dense and min(ids) >= 0 and max(ids) < len(table.contents)):
            return
        for position, token_id in enumerate(ids):
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                given = f"{token_id!r} of type {type(token_id).__name__}"
                raise InvalidRequest(f"token ids must be integers; position {position} holds {given}", param="tokens")
            if token_id not in table:
                given = f"token id {token_id} at position {position}"
                limit = f"the vocabulary of {self.vocab_size} tokens"
                raise InvalidRequest(f"{given} is not in {limit}", param="tokens")


def _add_tokens(backend: tokenizers.Tokenizer, files: TextFiles) -> None:
    """Add what tokenizer_config.json names and tokenizer.json lacks, in the order of Transformers.

    A token that is there already is found in a text as before, whatever stands beside its name; a name of its own, as
    `eos_token`, makes it special.
    """
    present = backend.get_added_tokens_decoder().values()
    unchanged = {repr(token) for token in present}
    known = {token.content: token for token in (*files.older_tokens, *present, *files.added_tokens)}
    for token in files.named_tokens.values():
        known.setdefault(token.content, token).special = True
    for token in files.extra_tokens:
        known.setdefault(token.content, token)
    backend.add_tokens([token for token in known.values() if repr(token) not in unchanged])


def _refuse_text(text: object, name: str) -> None:
    """Raise InvalidRequest if `text` is what `tokenizers` cannot take."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} must be a string, not {type(text).__name__}", param=name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = f"U+{ord(text[error.start]):04X}"
        message = f"{name} is not valid Unicode: lone surrogate {bad} at character {error.start} of {len(text)}"
        raise InvalidRequest(message, param=name) from None
