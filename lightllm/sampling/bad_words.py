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
    """One row's bad words: ids always banned, and longer words."""

    single: Int64
    longer: tuple[tuple[int, ...], ...]


class BadWords:
    """The stage; its device work is a gather from history and a comparison."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words: PerRow[_Words] = PerRow(max_rows)

    def open(self, opened: OpenedRow) -> None:
        possible = [word for word in opened.bad_words if word and self._can_appear(word)]
        single = np.array([word[0] for word in possible if len(word) == 1], np.int64)
        longer = tuple(word for word in possible if len(word) > 1)
        self._words.set(opened.row, _Words(single, longer) if possible else None)

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
        pairs = [(int(i), word) for i, own in zip(indices, words, strict=True) for word in own.longer]
        pairs = [(i, word) for i, word in pairs if len(word) <= batch.lengths[i] + 1]
        if not pairs:
            return None
        owners = np.array([i for i, _ in pairs], np.int64)
        tails = _right_aligned([word[:-1] for _, word in pairs])
        positions = batch.lengths[owners, None] + np.arange(-tails.shape[1], 0)
        last = np.array([i * self._vocab_size + word[-1] for i, word in pairs], np.int64)
        return _BanAfterTail(
            transfer.add(batch.rows[owners, None].astype(np.int64)),
            transfer.add(np.maximum(positions, 0).astype(np.int64)),
            transfer.add(tails),
            transfer.add(last),
        )


def _right_aligned(tails: list[tuple[int, ...]]) -> Int32:
    """Tails as one array [Q, longest], filled with ANYTHING on the left."""
    width = max(map(len, tails))
    return np.array([(ANYTHING,) * (width - len(tail)) + tail for tail in tails], np.int32)


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
