"""bad_words: token sequences that may not appear.

A word of one token is always banned. The last token of a longer word is banned when the row's history ends with the
rest of the word, as in Transformers' NoBadWordsLogitsProcessor: the comparison covers the prompt, too.

    history   ... 5 9 4 |            word  [9, 4, 7]  ->  7 is banned
                    ^^^               tail  -1 9 4        -1 matches anything
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightllm.kernels.transfer import Transfer, Uploaded
from lightllm.protocol.plan import Int32, OpenedRow
from lightllm.sampling.bans import BANNED, Ban
from lightllm.sampling.stage import HostBatch, Int64, LogitsEdit, PerRow, flat_positions

ANYTHING = -1


@dataclass(frozen=True, slots=True)
class _Words:
    """One row's bad words: ids always banned; of Q longer words how many tokens they have [Q], all but the last of
    these [Q, longest], filled with ANYTHING on the left, and the last [Q]."""

    single: Int64
    sizes: Int64
    tails: Int32
    last: Int64


class BadWords:
    """The stage; its device work is a gather from history and a comparison."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words: PerRow[_Words] = PerRow(max_rows)

    def open(self, opened: OpenedRow) -> None:
        possible = [word for word in opened.bad_words if word and self._can_appear(word)]
        self._words.set(opened.row, _read(possible) if possible else None)

    def concerns(self, row: int) -> bool:
        return self._words.has(row)

    def plan(self, batch: HostBatch, transfer: Transfer) -> LogitsEdit | None:
        indices, words = self._words.find(batch.rows)
        if not words:
            return None
        single = flat_positions(indices, [own.single for own in words], self._vocab_size)
        ban = Ban(transfer.add(single)) if len(single) else None
        ends = self._plan_longer(batch, indices, words, transfer)
        return _BadWordsEdit(ban, ends) if ban or ends else None

    def _can_appear(self, word: tuple[int, ...]) -> bool:
        return all(0 <= token < self._vocab_size for token in word)

    def _plan_longer(
        self, batch: HostBatch, indices: Int64, words: list[_Words], transfer: Transfer
    ) -> _BanAfterTail | None:
        """The words of more than one token that are not longer than what is known of their row."""
        owners = np.repeat(indices, [len(own.sizes) for own in words])
        fits = np.concatenate([own.sizes for own in words]) <= batch.lengths[owners] + 1
        if not fits.any():
            return None
        owners = owners[fits]
        tails = _side_by_side([own.tails for own in words])[fits]
        last = np.concatenate([own.last for own in words])[fits]
        positions = batch.lengths[owners, None] + np.arange(-tails.shape[1], 0)
        return _BanAfterTail(
            transfer.add(batch.rows[owners, None].astype(np.int64)),
            transfer.add(np.maximum(positions, 0).astype(np.int64)),
            transfer.add(tails),
            transfer.add(owners * self._vocab_size + last),
        )


def _read(words: list[tuple[int, ...]]) -> _Words:
    longer = [word for word in words if len(word) > 1]
    width = max(map(len, longer), default=1) - 1
    tails = [(ANYTHING,) * (width + 1 - len(word)) + word[:-1] for word in longer]
    return _Words(
        single=np.array([word[0] for word in words if len(word) == 1], np.int64),
        sizes=np.array([len(word) for word in longer], np.int64),
        tails=np.array(tails, np.int32).reshape(len(longer), width),
        last=np.array([word[-1] for word in longer], np.int64),
    )


def _side_by_side(tails: list[Int32]) -> Int32:
    """Tails [Q, M] of several rows as one array [all Q, longest M], filled with ANYTHING on the left."""
    whole = np.full((sum(map(len, tails)), max(own.shape[1] for own in tails)), ANYTHING, np.int32)
    begin = 0
    for own in tails:
        whole[begin : begin + len(own), whole.shape[1] - own.shape[1] :] = own
        begin += len(own)
    return whole


@dataclass(frozen=True, slots=True)
class _BadWordsEdit:
    ban: Ban | None
    ends: _BanAfterTail | None

    def apply(self, logits: Tensor, history: Tensor) -> None:
        if self.ban is not None:
            self.ban.apply(logits, history)
        if self.ends is not None:
            self.ends.apply(logits, history)


@dataclass(frozen=True, slots=True)
class _BanAfterTail:
    """Q words: history rows [Q, 1], positions [Q, M] of their tails [Q, M], flat positions of the last tokens [Q]."""

    rows: Uploaded
    positions: Uploaded
    tails: Uploaded
    last: Uploaded

    def apply(self, logits: Tensor, history: Tensor) -> None:
        tails = self.tails.tensor
        known = history[self.rows.tensor, self.positions.tensor]  # [Q, M]
        matches = ((known == tails) | (tails == ANYTHING)).all(dim=1)
        limits = torch.full((len(tails),), -BANNED, dtype=logits.dtype, device=logits.device)
        limits.masked_fill_(matches, BANNED)
        # Several words may end in the same token: the least limit holds, in whatever order they are applied.
        logits.view(-1).scatter_reduce_(0, self.last.tensor, limits, "amin")
