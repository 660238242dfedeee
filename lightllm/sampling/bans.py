"""Tokens that may not come next, whatever came before: outside allowed_token_ids, or an end before min_tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm.kernels.transfer import Transfer, Uploaded
from lightllm.protocol.plan import OpenedRow
from lightllm.sampling.stage import HostBatch, Int64, LogitsEdit, PerRow, flat_positions, ids_within

BANNED = float("-inf")


class AllowedTokens:
    """allowed_token_ids: every other token is banned."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._allowed: PerRow[Int64] = PerRow(max_rows)

    def open(self, opened: OpenedRow) -> None:
        allowed = opened.params.allowed_token_ids
        self._allowed.set(opened.row, None if allowed is None else ids_within(allowed, self._vocab_size))

    def concerns(self, row: int) -> bool:
        return self._allowed.has(row)

    def plan(self, batch: HostBatch, transfer: Transfer) -> LogitsEdit | None:
        indices, ids = self._allowed.find(batch.rows)
        if not ids:
            return None
        kept = flat_positions(indices, ids, self._vocab_size)
        return _KeepOnly(transfer.add(indices), transfer.add(kept))


class MinTokens:
    """min_tokens: until so many tokens are generated, neither an end-of-sequence id nor a stop id may come."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._ends: PerRow[tuple[int, Int64]] = PerRow(max_rows)

    def open(self, opened: OpenedRow) -> None:
        params = opened.params
        ends = ids_within([*opened.eos_ids, *params.stop_token_ids], self._vocab_size)
        wanted = params.min_tokens > 0 and len(ends) > 0
        self._ends.set(opened.row, (opened.prompt_len + params.min_tokens, ends) if wanted else None)

    def concerns(self, row: int) -> bool:
        return self._ends.has(row)

    def plan(self, batch: HostBatch, transfer: Transfer) -> LogitsEdit | None:
        indices, ends = self._ends.find(batch.rows)
        early = [j for j, (first, _) in enumerate(ends) if batch.lengths[indices[j]] < first]
        if not early:
            return None
        banned = flat_positions(indices[early], [ends[j][1] for j in early], self._vocab_size)
        return Ban(transfer.add(banned))


@dataclass(frozen=True, slots=True)
class Ban:
    """Bans single tokens, given as positions [Q] in the flattened logits."""

    banned: Uploaded

    def apply(self, logits: Tensor, history: Tensor) -> None:
        logits.view(-1).index_fill_(0, self.banned.tensor, BANNED)


@dataclass(frozen=True, slots=True)
class _KeepOnly:
    """Bans all tokens of some rows [R] but those at the given flat positions [Q]."""

    rows: Uploaded
    kept: Uploaded

    def apply(self, logits: Tensor, history: Tensor) -> None:
        flat = logits.view(-1)
        values = flat[self.kept.tensor]  # [Q]
        logits.index_fill_(0, self.rows.tensor, BANNED)
        flat[self.kept.tensor] = values
