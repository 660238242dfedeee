"""What every token id stands for, as bytes or text, so that decoding needs no call into `tokenizers`.

A `tokenizer.json` names a decoder: the rule that turns vocabulary entries back into text. Two rules cover
nearly all language models and are tabulated here, id by id:

    bytes     byte-level BPE (Llama 3, Qwen, GPT): each entry spells bytes with 256 printable characters
    pieces    SentencePiece style (Llama 2, Mistral, Gemma): each entry is text with space markers, or a byte

Any other rule is `windowed`: only `tokenizers` itself can decode it. This module knows no streams and no
requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

__all__ = ["DecoderRule", "Vocabulary", "recognise_decoder"]

T = TypeVar("T")
Kind = Literal["bytes", "pieces", "windowed"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class DecoderRule:
    """A decoder section, reduced to what decoding one id needs.

    `replacements` are applied to each entry in order; `byte_fallback` reads `<0xNN>` as a raw byte. At the
    start of a text `strip_left` leading spaces are dropped, or, with `strip_first_piece`, every space of the
    first entry that a replacement made.
    """

    kind: Kind
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip_left: int = 0
    strip_first_piece: bool = False


WINDOWED = DecoderRule("windowed")


def recognise_decoder(section: dict[str, Any] | None) -> DecoderRule:
    """Read the decoder section of a tokenizer.json; a rule not known here is `windowed`, always right."""
    if section is None:
        return WINDOWED
    steps = section["decoders"] if section.get("type") == "Sequence" else [section]
    names = [step.get("type") for step in steps]
    if names in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return DecoderRule("bytes")
    if names == ["Metaspace"]:
        never = steps[0].get("prepend_scheme", "always") == "never"
        marker = str(steps[0].get("replacement", "▁"))
        return DecoderRule("pieces", ((marker, " "),), strip_first_piece=not never)
    return _recognise_pieces(steps)


def _recognise_pieces(steps: Sequence[dict[str, Any]]) -> DecoderRule:
    """The SentencePiece pipeline: Replace*, ByteFallback?, Fuse, Strip(one space from the left)?."""
    replacements: list[tuple[str, str]] = []
    seen: list[str] = []
    strip_left = 0
    for step in steps:
        name = str(step.get("type"))
        if name == "Replace" and not seen:
            pattern = step.get("pattern", {}).get("String")
            if not pattern:
                return WINDOWED
            replacements.append((pattern, str(step.get("content", ""))))
        elif (
            (name == "ByteFallback" and not seen)
            or (name == "Fuse" and "Fuse" not in seen)
            or (
                name == "Strip" and seen and seen[-1] == "Fuse" and step.get("content") == " " and step.get("stop") == 0
            )
        ):
            seen.append(name)
            strip_left = int(step.get("start", 0)) if name == "Strip" else strip_left
        else:
            return WINDOWED
    if "Fuse" not in seen:
        return WINDOWED
    return DecoderRule("pieces", tuple(replacements), "ByteFallback" in seen, strip_left)


class Vocabulary:
    """Tables from token id to what it stands for.

    contents: id -> vocabulary entry as stored, or None where an id is not taken
    special_ids: ids that `skip_special_tokens` hides
    rule: how entries become text
    """

    def __init__(self, contents: list[str | None], special_ids: frozenset[int], rule: DecoderRule) -> None:
        self.contents = contents
        self.special_ids = special_ids
        self.rule = rule

    @classmethod
    def from_backend(cls, backend: Any) -> Vocabulary:
        """Read a `tokenizers.Tokenizer`, added tokens included."""
        entries: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        size = 1 + max([*entries.values(), *added], default=-1)
        contents: list[str | None] = [None] * size
        for entry, token_id in entries.items():
            contents[token_id] = entry
        for token_id in added:  # a normalizer may have changed an added token, and `tokenizers` decodes what it made
            contents[token_id] = backend.id_to_token(token_id)
        specials = frozenset(token_id for token_id, token in added.items() if token.special)
        section = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None
        return cls(contents, specials, recognise_decoder(section))

    def __contains__(self, token_id: object) -> bool:
        return isinstance(token_id, int) and 0 <= token_id < len(self.contents) and self.contents[token_id] is not None

    @cached_property
    def is_dense(self) -> bool:
        """Whether every id below len(contents) is taken."""
        return None not in self.contents

    @cached_property
    def byte_table(self) -> list[bytes]:
        """Id -> bytes, for the `bytes` rule; ids that are not taken give none, as in `tokenizers`."""
        to_bytes = _byte_level_encoder()
        return [b"" if entry is None else to_bytes(entry) for entry in self.contents]

    @cached_property
    def piece_table(self) -> list[str | int]:
        """Id -> text, or the value of a raw byte, for the `pieces` rule; ids that are not taken give none."""
        return ["" if entry is None else self._piece(entry) for entry in self.contents]

    @cached_property
    def visible_byte_table(self) -> list[bytes]:
        """`byte_table` with nothing for special tokens."""
        return _blank(self.byte_table, self.special_ids, b"")

    @cached_property
    def visible_piece_table(self) -> list[str | int]:
        """`piece_table` with nothing for special tokens."""
        return _blank(self.piece_table, self.special_ids, "")

    def first_piece(self, token_id: int) -> str:
        """Text of an entry at the start of a text under `strip_first_piece`: without any space marker."""
        entry = self.contents[token_id] or ""
        for pattern, _ in self.rule.replacements:
            entry = entry.replace(pattern, "")
        return entry

    def _piece(self, entry: str) -> str | int:
        for pattern, content in self.rule.replacements:
            entry = entry.replace(pattern, content)
        if self.rule.byte_fallback and (match := _BYTE_PIECE.fullmatch(entry)):
            return int(match[1], 16)
        return entry


def _blank(table: list[T], ids: frozenset[int], nothing: T) -> list[T]:
    blanked = list(table)
    for token_id in ids:
        blanked[token_id] = nothing
    return blanked


def _byte_level_encoder() -> Callable[[str], bytes]:
    """Entry -> bytes by the GPT-2 alphabet: printable Latin-1 stands for itself, the rest for U+0100 upwards.

    Source: openai/gpt-2, encoder.py, bytes_to_unicode. An entry with a character outside the alphabet (an
    added token with a space in it) is plain text and gives its UTF-8 bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(printable))
    decode = {byte: byte for byte in printable} | {0x100 + rank: byte for rank, byte in enumerate(hidden)}
    foreign = dict.fromkeys(hidden, 4096)  # any code above 0xFF fails the Latin-1 encoding below
    table = decode | foreign

    def to_bytes(entry: str) -> bytes:
        try:
            return entry.translate(table).encode("latin-1")
        except UnicodeEncodeError:
            return entry.encode()

    return to_bytes
